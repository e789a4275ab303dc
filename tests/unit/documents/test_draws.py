"""The global random generators, around a call of a transform or a chat template."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streampack import PackedDataLoader, PackedDataset
from streampack.chat.encoder import make_encoder
from streampack.chat.options import Chat
from streampack.documents.draws import own_draws, undisturbed
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.documents.transform import transformed
from streampack.records import Document, Sample
from streampack.testing import ByteTokenizer

PLACES = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random_sample()), float(torch.rand(()))  # noqa: NPY002 (the global one)


def drawn_at(place: tuple[int, ...]) -> tuple[float, ...]:
    drawn: list[float] = []

    def transform(document: Document, rng: np.random.Generator) -> Document:
        drawn.extend([*draws(), *draws(), rng.random()])
        return document

    transformed(Document(text="a text"), transform, place, 1000)
    return tuple(drawn)


def test_each_document_draws_its_own_numbers_and_always_the_same() -> None:
    first = [drawn_at(place) for place in PLACES]
    draws()
    assert [drawn_at(place) for place in reversed(PLACES)] == first[::-1]
    assert len({number for drawn in first for number in drawn}) == 7 * len(PLACES)


def test_the_numbers_never_change() -> None:
    """They are part of what a run is; torch's and numpy's streams are theirs to keep."""
    assert [round(number, 6) for number in drawn_at((0, 0, 0, 0, 0))[:3]] == [0.660415, 0.866008, 0.698066]


def test_the_trainers_own_draws_are_as_if_no_transform_had_been_called() -> None:
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)  # type: ignore[operator]
    wanted = [draws() for _ in range(3)]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)  # type: ignore[operator]
    found = []
    items = undisturbed(map(drawn_at, PLACES))
    for _ in range(3):
        found.append(draws())
        next(items)
    assert found == wanted


def test_that_holds_after_an_error() -> None:
    def failing(document: Document, rng: np.random.Generator) -> Any:
        raise ValueError("a document that it does not like")

    random.seed(7)
    wanted = random.random()
    random.seed(7)
    with pytest.raises(ValueError, match="does not like"), own_draws():
        transformed(Document(text="a text"), failing, PLACES[0], 1000)
    assert random.random() == wanted


CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}'


def reader_with(template: Any, transform: Any = None, seed: int = 0) -> DocumentReader:
    chat = make_encoder(Chat(template), tokenizer=ByteTokenizer(), add_bos=False, add_eos=False, read=lambda _: b"")
    return DocumentReader(
        field=parse_field("jsonl:messages"), chat=chat, chat_may_draw=chat.may_draw, transform=transform, seed=seed
    )


def chats(reader: DocumentReader, *, first_record: int = 0, first_part: int = 0) -> list[bytes]:
    sample = Sample(key="a", members={"jsonl": b"\n".join([CHAT] * 3)}, sizes={"jsonl": 3 * len(CHAT)}, position=512)
    at = {"url": "a.tar", "shard_name": "a.tar", "shard_index": 0, "epoch": 0}
    found = reader.read(sample, first_record=first_record, first_part=first_part, **at)  # type: ignore[arg-type]
    return [np.asarray(each.tokens).tobytes() for each in found if isinstance(each, Document)]


def drawing(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    return [(f"{draws()}", True)]


NUMBER = "[range(99999) | random, range(99999) | random]"
JINJA = "{% for m in messages %}{% generation %}{{ " + NUMBER + " }}{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize("template", [drawing, JINJA], ids=["function", "jinja"])
def test_what_a_chat_template_draws_depends_on_the_document_alone(template: Any) -> None:
    reader = reader_with(template, transform=lambda document, rng: [document, document] if draws() else None)
    assert reader.may_draw
    every = chats(reader)
    draws()
    assert chats(reader, first_record=1, first_part=1) == every[3:]
    assert len(set(every)) == 6, "each part draws its own"
    assert chats(reader_with(template, seed=1)) != chats(reader_with(template))


def test_built_in_templates_and_those_without_draws_leave_the_generators_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streampack.documents.reader.seed_generators", lambda place: pytest.fail("seeded"))
    plain = JINJA.replace(NUMBER, "m.content")
    for template in ("llama2", plain):
        reader = reader_with(template)
        assert not reader.may_draw and len(chats(reader)) == 3


def test_a_trainers_draws_are_its_own_beside_a_chat_function(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(20):
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(CHAT)
            tar.addfile(member, io.BytesIO(CHAT))
    random.seed(7)
    wanted = random.random()
    for use in (lambda data: data, lambda data: PackedDataLoader(data, num_workers=0)):
        data = PackedDataset(str(tmp_path), ByteTokenizer(), 64, chat=drawing, field="json:messages", num_lanes=1)
        random.seed(7)
        next(iter(use(data)))
        assert random.random() == wanted
