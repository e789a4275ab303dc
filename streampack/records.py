"""What flows between the stages. Records are frozen; a stage reads one kind and writes the next.

    Shard -> Sample -> Document -> (tokens, loss mask) -> Pack

Stages do not import each other; they share these, the errors and the counters.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from streampack.errors import RecordError, as_integer

IGNORE_INDEX = -100
"""The label of a row that is not trained: `torch.nn.functional.cross_entropy` ignores it by default."""

# How much compressed bytes may expand to: for shards and for members.
MAX_RATIO = 200
"""Decompressed bytes for each compressed byte, after the first `FREE_BYTES`. Text comes to 3 or 4, token ids to about
2, one line repeated without end to thousands."""
FREE_BYTES = 1 << 26
"""Decompressed bytes for which the ratio is not checked."""
MAX_WINDOW_BYTES = 1 << 27
"""The largest window of zstd: that of `zstd --long`, the largest that zstd decompresses by default."""


Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]
Message: TypeAlias = Mapping[str, Any]
"""One message of a conversation: "role" and "content", both strings, and whatever else a template may use. The content
may be None or missing where there are "tool_calls" or a "function_call"."""
WEIGHT_KEYS = (
    "weight", "weights", "loss_weight", "loss_weights", "loss_mask", "mask", "masked", "is_masked", "train", "trained",
    "training", "trainable",
)
"""What may say, in a message or beside the messages, whether they are trained. Only `weight` of a message is read."""
CONTEXT_KEYS = (
    "tools", "functions", "documents", "system", "images", "audios", "videos", "chat_template_kwargs",
    "available_tools", "system_prompt", "system_message", "image", "audio", "video", "attachments", *WEIGHT_KEYS,
)
"""Keys beside the messages of a record that change what a model should see of the conversation, or what is trained:
they are for the chat template. All other keys there (an id, a source, a date) are metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much memory documents and lanes may take."""

    document_bytes: int = 64 * 2**20
    """Of a document: its bytes of UTF-8 text, or four times its number of token ids. A larger one is a bad record."""
    buffer_bytes: int | None = None
    """Bytes that the lanes of one rank may hold together, divided over its workers; at least 112 KiB for each lane, and
    its windows. None: 512 MiB, or what the lanes need where that is more, up to 4 GiB. A worker that meets a document
    that does not fit into its part holds that one document besides."""

    def __post_init__(self) -> None:
        for name in ("document_bytes", "buffer_bytes"):
            if (value := getattr(self, name)) is not None or name == "document_bytes":
                object.__setattr__(self, name, as_integer(value, f"limits.{name}", low=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One archive of the corpus: where it is and what is known of it before it is opened."""

    url: str
    name: str
    """The part of the URL that stays the same when the corpus moves: relative to what the URLs share."""
    size: int
    """Bytes as stored; for an unknown size the estimate that the lanes are laid out with."""
    size_known: bool = True
    digest: str | None = None
    """The digest of the stored bytes, where a manifest gives one; `storage/digests.py` describes its form."""
    etag: str | None = None
    """What the storage called this version of the shard when it was listed."""
    num_samples: int | None = None
    whole: bool = False
    """Whether it cannot be cut: it is compressed, its size is unknown, or the manifest says so."""


NO_FLAWS: Mapping[str, str] = MappingProxyType({})
WHOLE_SAMPLE = "/"
"""Stands for an extension in `Sample.flaws`; no extension holds a slash."""


class Sample(NamedTuple):
    """Members of one tar that share a key, in WebDataset's sense."""

    key: str
    position: int
    """Where the sample stands in its shard: in a plain tar the byte offset of its first header (prefix headers
    included), in a compressed one its ordinal, counted from 0."""
    members: Mapping[str, bytes]
    """Extension (after the first dot of the base name) -> content; only the wanted ones."""
    sizes: Mapping[str, int] = MappingProxyType({})
    """Extension -> size in bytes, of every member."""
    flaws: Mapping[str, str] = NO_FLAWS
    """Extension -> why a wanted member is not in `members`; `WHOLE_SAMPLE` -> why there is no sample at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a tokenizer turns into tokens; a transform gets a document and returns one, several or none.

    Exactly one of `text`, `tokens` and `messages` is set. `loss_mask` (bool [n]): which of `tokens` may be a target.
    """

    text: str | None = None
    tokens: Tokens | None = None
    messages: tuple[Message, ...] | None = None
    """A conversation; after the transform, a chat template turns it into tokens."""
    context: Mapping[str, Any] | None = None
    """What stands beside the messages and changes what a model should see of them: `tools`, `documents`, ... A chat
    template that has no place for it makes a bad record of the conversation."""
    loss_mask: Mask | None = None
    key: str = ""
    url: str = ""
    record: int = 0
    """Index of the record in its member (JSON lines hold many, the other fields one)."""
    part: int = 0
    """Index in the list that the transform returned for the record."""
    sample: int = 0
    """`Sample.position` of its sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """Takes the place of a document that cannot be read; the caller raises its error, or skips and counts it."""

    record: int
    """Index of the record in its member; -1: a member of many records is bad as a whole, and so is its sample."""
    error: RecordError
    part: int = -1
    """Index of the bad part in what the transform made of the record; -1: the record is bad as a whole."""


class Joined(NamedTuple):
    """Token ids of documents, one after the other in one array of n."""

    tokens: Tokens
    """int32 [n]."""
    lengths: list[int]
    """Tokens of each document; their sum is n."""
    loss_mask: Mask | None = None
    """bool [n]: which of the tokens may be a target; None: all."""


def join(tokens: Sequence[NDArray[np.integer]], masks: Sequence[Mask | None] = ()) -> Joined:
    """Each document's tokens [n] (ids that fit int32) and its loss mask, side by side; no masks: all are None."""
    lengths = [len(ids) for ids in tokens]
    mask: Mask | None = None
    if any(each is not None for each in masks):
        parts = [np.ones(n, np.bool_) if each is None else each for n, each in zip(lengths, masks, strict=True)]
        mask = np.concatenate(parts)
    return Joined(np.concatenate(tokens, dtype=np.int32), lengths, mask)


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """Tokens of one document (BOS and EOS already in), and which of them may be a target (None: all)."""

    tokens: NDArray[np.integer] | list[int]
    loss_mask: NDArray[np.bool_] | list[bool] | None = None


class ControlToken(NamedTuple):
    """A token that no text becomes, such as the one that ends an answer.

    A tokenizer may have a method `control_tokens()` that gives {name: ControlToken}, for chat templates; it is
    public as `streampack.tokenizers.ControlToken`.
    """

    id: int
    lstrip: bool = False
    """Whether it takes in the white space before it."""
    rstrip: bool = False
    """Whether it takes in the white space after it."""


class Cursor(NamedTuple):
    """Where a lane continues: plain integers, so that a state is a row of them.

    With windows of a shuffle, (piece, sample, record) is where the lane's window begins, else the document itself. With
    windows of `best_fit`, all up to `row` is where the packing window began.
    """

    epoch: int = 0
    piece: int = 0
    """Index into the lane's pieces of the epoch."""
    sample: int = -1
    """`Sample.position` of the sample; -1: the start of the piece."""
    record: int = 0
    place: int = 0
    """Records of the window, in its order, that come before the one that the lane is in; without windows 0."""
    part: int = 0
    row: int = 0
    """Input rows of the document that earlier packs hold."""
    given: int = 0
    """Packs of the packing window that are out; other packings than `best_fit` have no such window: 0."""
    stage: int = 0
    """The stage by which the window was cut: the first one of the source that is cut so; without a window 0."""
    rest: int = 0
    """Tokens of what these packs have left of the window that packs of later stages, which are cut otherwise, hold."""
    until: int = 0
    """The epoch after that of the window's last document; without a window 0. Where the run ended then, a window ends
    before it is full: from here on it is placed as it was, however many epochs are read now."""
    last: int = 0
    """The piece of the window's last document; without a window 0."""
    last_sample: int = 0
    """The sample of the window's last document; without a window 0."""


class Counts(NamedTuple):
    """What is counted for one pack, or for one lane since the start of the run."""

    documents: int = 0
    """Documents whose last row was given or dropped, or that have no row."""
    tokens: int = 0
    """Input rows that are not padding."""
    targets: int = 0
    padding: int = 0
    """Rows of padding; those of fillers are not counted."""
    bad_records: int = 0
    """Bad records and broken shards that `on_error="skip"` skipped; each counts once in each epoch."""
    split_documents: int = 0
    truncated_documents: int = 0
    truncated_tokens: int = 0
    dropped_documents: int = 0
    dropped_tokens: int = 0
    targetless_packs: int = 0
    """Packs without a single target, which are never given."""
    targetless_tokens: int = 0
    """Rows of the targetless packs."""
    tail_tokens: int = 0
    """Rows of unfinished packs dropped by `tail="drop"`."""
    fillers: int = 0
    """Packs of nothing but padding that keep finite runs in step."""
    skipped_packs: int = 0
    """Packs that `loader.skip` skipped."""

    def plus(self, more: "Counts") -> "Counts":
        """Both together."""
        return Counts._make(map(operator.add, self, more))


class StorageUse(NamedTuple):
    """What one process asked of the storage; never part of a state, as it depends on the topology and on chance."""

    retries: int = 0
    """Requests that failed and were made again."""
    requests: int = 0
    bytes_read: int = 0
    seconds_waited: float = 0.0
    """Seconds with nothing to do but wait for the storage."""
    cache_hits: int = 0
    """Blocks that were read from the cache."""
    cache_bytes: int = 0
    """Bytes of shards that came from the cache, and not from the storage."""

    def since(self, before: "StorageUse") -> "StorageUse":
        """What was used after `before` was taken."""
        return StorageUse(*map(operator.sub, self, before))

    def plus(self, more: "StorageUse") -> "StorageUse":
        """Both together."""
        return StorageUse(*map(operator.add, self, more))


MOST_DIFFERENCES = 10
"""A run in which more documents of different texts are met in a `Difference` ends."""


class Difference(NamedTuple):
    """A text for which the engine of a tokenizer gave other ids than the tokenizer."""

    text: int
    """Its hash, `hash_name`: the same one in every process."""
    what: str
    """For the log; what it says comes after the document's place."""


@runtime_checkable
class Compared(Protocol):
    """A tokenizer that compares ids in the run (`tokenizers/comparing.py`)."""

    def untold(self) -> list[Difference]:
        """Those of different texts that this process has met since it was last asked, the first ones of many."""


@runtime_checkable
class Tokenizer(Protocol):
    """What streampack asks of a tokenizer. It must survive pickling, or be built again in each worker.

    `encode` returns the ids of the text alone (no BOS, no EOS) as an integer array [n], each from 0 to
    `vocab_size - 1`; an id is None where the vocabulary has no such token; `digest` names the mapping from text to ids
    and is part of the fingerprint.
    """

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def digest(self) -> str: ...
    def encode(self, text: str) -> NDArray[np.integer]: ...
