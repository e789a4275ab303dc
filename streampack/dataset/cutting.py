"""How the rows of a stage are cut into packs: what the stages before it say, with what it changes.

In:    the arguments of a dataset and its stages; the pipeline of the stage before.
Out:   a pipeline that cuts in this way, the same object where nothing changes; its options as plain JSON values.
Never: another document or another token: a stage changes only where the rows are cut.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from streampack.dataset.stages import Stage
from streampack.documents.fields import Field
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import Packing, PackingKind, as_packing
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary, as_boundary
from streampack.records import Tokenizer


class Cut(NamedTuple):
    """The options of a stage, as they were given."""

    seq_len: int
    boundary: BoundaryPolicy | ReplaceBoundary
    packing: Packing | PackingKind | str | None
    """None: each source has that of its kind of documents."""

    def changed(self, stage: Stage) -> "Cut":
        """With what a stage changes."""
        return Cut(
            self.seq_len if stage.seq_len is None else stage.seq_len,
            self.boundary if stage.boundary is None else as_boundary(stage.boundary),
            self.packing if stage.packing is None else stage.packing,
        )

    def pipeline(self, before: Pipeline) -> Pipeline:
        """`before`, cut in this way.

        Raises:
            ConfigError: options that cannot work together.
        """
        check_boundary(self.boundary, before.vocab_size)
        packing = as_packing(self.packing, conversations=before.documents.field.is_chat)
        adds_bos = before.bos_id is not None
        after = dataclasses.replace(
            before,
            seq_len=self.seq_len,
            boundary=self.boundary,
            packing=packing,
            token_ids=ids_of_boundaries(before.documents.field, before.tokenizer, self.boundary, adds_bos=adds_bos),
        )
        if all(getattr(after, name) == getattr(before, name) for name in ("seq_len", "boundary", "packing")):
            return before
        after.packer()  # it checks whether the boundary has the token that it looks for
        return after


def ids_of_boundaries(
    field: Field, tokenizer: Tokenizer | None, boundary: BoundaryPolicy | ReplaceBoundary, *, adds_bos: bool
) -> tuple[int | None, int | None]:
    """The (BOS, EOS) that documents may hold, for the policies that look at values."""
    if tokenizer is None:
        return None, None
    # A text becomes no BOS: without one in front, an EOS of the same id is at ends only.
    only_ends = boundary is BoundaryPolicy.MASK_EOS_INPUT and not adds_bos
    is_text = not field.is_chat and field.kind != "npy"
    return None if only_ends and is_text else tokenizer.bos_id, tokenizer.eos_id


def check_boundary(boundary: BoundaryPolicy | ReplaceBoundary, vocab_size: int) -> None:
    """Refuse a label that no model has."""
    if isinstance(boundary, ReplaceBoundary) and not 0 <= boundary.token_id < vocab_size:
        raise ConfigError(
            f"boundary: ReplaceBoundary({boundary.token_id}) would be a label that no model has; with this tokenizer "
            f"token ids are from 0 to {vocab_size - 1}"
        )


def cut_as_json(pipeline: Pipeline) -> dict[str, Any]:
    """How a pipeline cuts rows into packs and what it leaves out, by the names that saved states have for it."""
    boundary, packing = pipeline.boundary, pipeline.packing
    return {
        "seq_len": pipeline.seq_len,
        "boundary": f"replace:{boundary.token_id}" if isinstance(boundary, ReplaceBoundary) else str(boundary),
        "packing": str(packing.kind),
        "overflow": str(packing.overflow),
        "tail": str(packing.tail),
        **({"packing_window": packing.window} if packing.has_windows else {}),
        "lookahead": packing.lookahead,
        **({} if pipeline.excluded is None else {"exclude": pipeline.excluded.described}),
    }


def cuts_as_json(pipelines: Mapping[str, Pipeline]) -> dict[str, Any]:
    """The same for the pipelines of one stage, by source; of each but the first what is different there."""
    cuts = {name: cut_as_json(pipeline) for name, pipeline in pipelines.items()}
    first, *_ = cuts.values()
    others = {
        name: {field: cut.get(field) for field in {*cut, *first} if cut.get(field) != first.get(field)}
        for name, cut in cuts.items()
    }
    others = {name: different for name, different in others.items() if different}
    return {**first, **({"sources": others} if others else {})}
