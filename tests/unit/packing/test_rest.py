"""A packing window that is half out, and rows that are cut in other ways then: each row once, from any place on."""

import itertools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack import Packing, TokenizedDocument
from streampack.errors import DocumentTooLongError, StateError
from streampack.packing.half_out import HalfOut
from streampack.packing.making import AnyPacker, make_packer
from streampack.packing.packs import PackRows
from streampack.packing.rest import RestPacker
from streampack.records import IGNORE_INDEX, Counts


@dataclass(frozen=True)
class Cut:
    seq_len: int
    packing: Packing
    boundary: str = "mask"

    @property
    def options(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "boundary": self.boundary}


class Place(NamedTuple):
    """Where the next pack begins; in a window, with how that was cut."""

    document: int = 0
    row: int = 0
    given: int = 0
    rest: int = 0
    cut: Cut | None = None


class Step(NamedTuple):
    pack: PackRows
    after: Place
    spans: list[tuple[int, int, int]]
    """(document, row, rows), counted over all documents."""


def packer_at(place: Place, cut: Cut, *, drops: bool = False) -> AnyPacker:
    before = place.cut
    if not place.given or (before == cut and not place.rest):
        return make_packer(packing=cut.packing, given=place.given, **cut.options)
    assert before is not None
    packing = cut.packing
    if packing.has_windows:
        packing = replace(packing, kind="next_fit", window=64)
    half_out = HalfOut(before.seq_len, before.boundary, before.packing, place.given, place.rest)
    return RestPacker(half_out, packing=packing, drops=drops, **cut.options)


class Line:
    """The packs of documents from a place on."""

    def __init__(self, documents: list[TokenizedDocument], place: Place, cut: Cut, **options: Any) -> None:
        self.documents, self.cut, self.options = documents, cut, options
        self.start(place)

    def start(self, place: Place) -> None:
        self.place = self.begin = place
        self.packer = packer_at(place, self.cut, **self.options)
        self.fed = 0

    def next(self) -> Step | None:
        while (pack := self.packer.pop()) is None:
            number = self.begin.document + self.fed
            if number > len(self.documents):
                return None
            if number == len(self.documents):
                self.packer.finish()
            else:
                document = self.documents[number]
                self.packer.feed(document.tokens, document.loss_mask, row=0 if self.fed else self.begin.row)
            self.fed += 1
        begin = self.begin
        cut = (begin.cut if pack.rest or isinstance(self.packer, RestPacker) else self.cut) if pack.given else None
        after = Place(begin.document + pack.next_document, pack.next_row, pack.given, pack.rest, cut)
        step = Step(pack, after, [(begin.document + n, row, size) for n, row, size in pack.spans])
        self.place = after
        if isinstance(self.packer, RestPacker) and not pack.given:
            self.start(after)
        return step


def plain(step: Step) -> tuple[Any, ...]:
    pack = step.pack
    ignored = None if pack.ignored is None else pack.ignored.tolist()
    return pack.tokens.tolist(), pack.edge_labels.tolist(), ignored, pack.counts, pack.is_closed, step.after, step.spans


def journey(documents: list[TokenizedDocument], cuts: list[tuple[Cut, int]]) -> tuple[list[Step], Counts]:
    """All packs, so many of each cut and the rest of the last one; what was counted. Each is found from the one before.

    From every place on, some packs more are the same.
    """
    steps: list[Step] = []
    place, counts, line = Place(), Counts(), None
    for cut, number in [*cuts[:-1], (cuts[-1][0], 10**9)]:
        line = Line(documents, place, cut)
        wanted: list[Any] = []
        for step in itertools.islice(iter(line.next, None), number):
            steps.append(step)
            wanted.append(plain(step))
            counts = counts.plus(step.pack.counts)
            place = step.after
        for at in range(1, len(wanted)):
            again = Line(documents, steps[len(steps) - len(wanted) + at - 1].after, cut)
            found = [again.next() for _ in wanted[at : at + 4]]
            assert [step and plain(step) for step in found] == wanted[at : at + 4]
    assert line is not None
    return steps, counts.plus(line.packer.counts_after)


def checked_rows(documents: list[TokenizedDocument], steps: list[Step]) -> set[tuple[int, int]]:
    """The rows of all packs, each of which comes once, with the token and the label that its document has there."""
    found = set()
    for pack, _, spans in steps:
        at = 0
        for (number, row, size), edge in zip(spans, pack.edge_labels.tolist(), strict=True):
            tokens, mask = documents[number].tokens, documents[number].loss_mask
            assert pack.tokens[at : at + size].tolist() == list(tokens[row : row + size])
            for index in range(row, row + size):
                assert (number, index) not in found
                found.add((number, index))
                is_edge = index == row + size - 1
                is_target = index + 1 < len(tokens) and (mask is None or mask[index + 1])
                label = edge if is_edge else tokens[index + 1]
                if not is_edge and pack.ignored is not None and pack.ignored[at + index - row]:
                    label = IGNORE_INDEX
                assert label == (tokens[index + 1] if is_target else IGNORE_INDEX)
            at += size
    return found


ids = st.integers(5, 99)


@st.composite
def texts(draw: st.DrawFn, *, masks: bool) -> list[TokenizedDocument]:
    found = []
    for tokens in draw(st.lists(st.lists(ids, max_size=24), min_size=4, max_size=20)):
        mask = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))) if masks else None
        found.append(TokenizedDocument(tokens, mask))
    return found


def cuts(*overflows: str, boundaries: tuple[str, ...]) -> st.SearchStrategy[list[tuple[Cut, int]]]:
    best_fit = st.builds(Packing, st.just("best_fit"), st.sampled_from(overflows), window=st.integers(2, 5))
    other = st.builds(Packing, st.sampled_from(["wrap", "next_fit"]), st.just("split"))
    others = st.one_of(best_fit, other)
    lengths, boundary = st.integers(2, 16), st.sampled_from(boundaries)
    first = st.tuples(st.builds(Cut, lengths, best_fit, boundary), st.integers(1, 5))
    later = st.tuples(st.builds(Cut, lengths, others, boundary), st.integers(0, 4))
    return st.builds(lambda one, more: [one, *more], first, st.lists(later, min_size=1, max_size=4))


@given(documents=texts(masks=False), cuts=cuts("split", boundaries=("mask",)))
def test_each_row_comes_once_and_each_document_counts_once(
    documents: list[TokenizedDocument], cuts: list[tuple[Cut, int]]
) -> None:
    steps, counts = journey(documents, cuts)
    rows = {(number, row) for number, document in enumerate(documents) for row in range(len(document.tokens))}
    left = rows - checked_rows(documents, steps)
    assert len(left) == counts.targetless_tokens
    assert all(len(documents[number].tokens) == row + 1 for number, row in left), "only rows without a label"
    assert (counts.documents, counts.bad_records) == (len(documents), 0)
    assert counts.targets == sum(len(document.tokens) - 1 for document in documents if len(document.tokens))
    assert counts.split_documents <= len(documents)


@given(documents=texts(masks=True), cuts=cuts("split", "truncate", "drop", boundaries=("mask", "trim")))
def test_nothing_is_lost_that_is_not_counted_and_labels_stay(
    documents: list[TokenizedDocument], cuts: list[tuple[Cut, int]]
) -> None:
    steps, counts = journey(documents, cuts)
    found = checked_rows(documents, steps)
    assert counts.documents == len(documents)
    left_out = counts.targetless_tokens + counts.truncated_tokens + counts.dropped_tokens
    least, most = (sum(max(len(each.tokens) - trims, 0) for each in documents) for trims in (1, 0))
    assert len(found) == counts.tokens
    assert least <= counts.tokens + left_out <= most, "the last row of a document is there under one boundary only"


LONG = [TokenizedDocument(list(range(10 * n, 10 * n + size))) for n, size in enumerate((3, 8, 2, 6, 5, 7, 1, 8, 4))]
BEST = Cut(8, Packing("best_fit", "split", window=3))


def test_a_document_that_was_cut_at_the_end_of_the_window_goes_on_whole() -> None:
    documents = [TokenizedDocument(list(range(5))), TokenizedDocument(list(range(100, 160)))]
    steps, _ = journey(documents, [(Cut(8, Packing("best_fit", "split", window=2)), 1), (Cut(64, BEST.packing), 0)])
    assert [step.spans for step in steps] in (
        [[(0, 0, 5)], [(1, 0, 60)]],
        [[(1, 0, 8)], [(0, 0, 5), (1, 8, 52)]],
        [[(1, 8, 8)], [(0, 0, 5), (1, 0, 8)], [(1, 16, 44)]],
    )


def test_what_is_left_of_a_window_stays_in_order_and_fills_packs_with_what_follows() -> None:
    steps, _ = journey(LONG, [(BEST, 2), (Cut(100, Packing("best_fit", "split", window=4)), 0)])
    out = {document for step in steps[:2] for document, _, _ in step.spans}
    assert len(steps) == 3
    assert steps[2].spans == [(n, 0, len(each.tokens)) for n, each in enumerate(LONG) if n not in out]


@pytest.mark.parametrize("drops", [False, True])
def test_a_document_of_the_rest_that_is_refused_is_named_or_dropped(drops: bool) -> None:
    documents = [*LONG[:5], *(TokenizedDocument(list(range(80, 83))) for _ in range(4))]
    first = Line(documents, Place(), BEST).next()
    assert first is not None
    long = {number for number in range(5) if len(documents[number].tokens) > 4} - {span[0] for span in first.spans}
    assert long
    line = Line(documents, first.after, Cut(4, Packing("next_fit", "error")), drops=drops)
    if drops:
        dropped = 0
        while step := line.next():
            dropped += step.pack.counts.dropped_documents
        assert dropped == len(long)
        return
    for _ in range(2):
        with pytest.raises(DocumentTooLongError, match=r"has \d rows in what is left of a packing window, and from"):
            list(iter(line.next, None))
    assert isinstance(line.packer, RestPacker)
    assert line.packer.refused == min(long)


def test_numbers_that_the_documents_cannot_have_are_an_error() -> None:
    for place, text in (
        (Place(0, 0, 9, 0, BEST), "9 packs of a packing window are said"),
        (Place(0, 0, 1, 999, BEST), "999 tokens of the rest of a packing window are said to be out, and it has"),
    ):
        with pytest.raises(StateError, match=text):
            Line(LONG, place, Cut(5, Packing("wrap", "split"))).next()
    with pytest.raises(StateError, match="1 packs of a packing window are said to be out, and its documents make 0"):
        Line([], Place(0, 0, 1, 0, BEST), Cut(5, Packing("wrap", "split"))).next()


def test_documents_may_be_fed_together() -> None:
    tokens = np.concatenate([np.array(each.tokens, np.int32) for each in LONG])
    lengths = [len(each.tokens) for each in LONG]
    for kind in ("wrap", "next_fit"):
        cut, place = Cut(6, Packing(kind, "split")), Place(0, 0, 1, 0, BEST)
        one, all_ = packer_at(place, cut), packer_at(place, cut)
        for each in LONG:
            one.feed(each.tokens)
        all_.feed_all(tokens, lengths)
        assert (one.buffered_rows, one.buffered_bytes > 0, all_.given) == (all_.buffered_rows, True, 0)
        for packer in (one, all_):
            packer.finish()
        packs = [[(p.tokens.tolist(), *p[4:]) for p in iter(packer.pop, None)] for packer in (one, all_)]
        assert str(packs[0]) == str(packs[1])
