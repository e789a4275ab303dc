"""The laws of packing over random documents, and a second implementation to compare with.

The second one is naive on purpose: one Python step per token, written from the table of boundary policies alone.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.packing import packer_of

from streampack.errors import DocumentTooLongError
from streampack.hashing import Purpose, permutation
from streampack.packing.blocks import expand_block, stack
from streampack.packing.making import AnyPacker
from streampack.packing.packs import Pack, PackRows
from streampack.packing.policies import ReplaceBoundary
from streampack.packing.public import pack
from streampack.records import Counts, TokenizedDocument

BOS, EOS, PAD = 1, 2, 2
"""Padding looks like EOS: nothing may depend on its value."""
POLICIES = ("keep", "mask", "trim", "mask_bos_target", "mask_eos_input", ReplaceBoundary(5))
MOST_DOCUMENTS = 3
"""Of a packing window, here."""
PACKINGS = ("wrap", "next_fit", "best_fit")
every_policy = pytest.mark.parametrize("boundary", POLICIES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _few_documents_a_window() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streampack.packing.options._LEAST_DOCUMENTS", MOST_DOCUMENTS)
        yield


@dataclass(frozen=True, kw_only=True)
class Arguments:
    seq_len: int = 8
    boundary: str | ReplaceBoundary = "mask"
    packing: str = "wrap"
    overflow: str = "split"
    tail: str = "pad"
    pad_id: int = PAD
    bos_id: int = BOS
    eos_id: int = EOS
    lookahead: bool = True
    window: int = 64

    def packer(self, *, given: int = 0) -> AnyPacker:
        return packer_of(**vars(self), given=given)

    def with_boundary(self, boundary: str | ReplaceBoundary) -> "Arguments":
        """The same with another policy; without best fit, where it does not have that policy."""
        if self.packing == "best_fit" and boundary not in ("mask", "trim"):
            return replace(self, boundary=boundary, packing="next_fit", window=64)
        return replace(self, boundary=boundary)


@dataclass
class Naive:
    """Packs as lists of Python ints, and what was counted on the way."""

    packs: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(document, offset, input, label) of every row of every pack, also of packs that are not given."""


def naive(documents: list[TokenizedDocument], arguments: Arguments) -> Naive:
    """Packs row by row, straight from the rules."""
    result, seq_len, boundary = Naive(), arguments.seq_len, arguments.boundary
    result.counts["documents"] = len(documents)

    def label(d: int, i: int, following: tuple[int, int] | None) -> int:
        """The label of the row with token i of document d, where `following` says which token S[i+1] is."""
        if following is None:
            return -100
        e, j = following
        token, target = documents[d].tokens[i], documents[e].tokens[j]
        if documents[e].loss_mask is not None and not documents[e].loss_mask[j]:
            return -100
        if boundary == "mask":
            return -100 if d != e else target
        if boundary == "mask_bos_target":
            return -100 if target == arguments.bos_id else target
        if boundary == "mask_eos_input":
            return -100 if token == arguments.eos_id else target
        if isinstance(boundary, ReplaceBoundary):
            return boundary.token_id if d != e else target
        return target  # keep; under trim there is no row where d != e

    def inputs_of(d: int) -> list[tuple[int, int]]:
        length = len(documents[d].tokens)
        return [(d, i) for i in range(length - 1 if boundary == "trim" else length)]

    packs: list[list[tuple[int, int]]] = []
    unfinished: list[tuple[int, int]] = []
    window: list[list[tuple[int, int]]] = []
    checksum = 0
    for d in range(len(documents)):
        inputs = inputs_of(d)
        is_long = len(inputs) > seq_len and arguments.overflow != "split"
        if arguments.packing != "wrap":
            if len(inputs) > seq_len and arguments.overflow == "drop":
                result.counts["dropped_documents"] += 1
                result.counts["dropped_tokens"] += len(inputs)
                inputs = []
            if len(inputs) > seq_len and arguments.overflow == "truncate":
                result.counts["truncated_documents"] += 1
                result.counts["truncated_tokens"] += len(inputs) - seq_len
                inputs = inputs[:seq_len]
        if arguments.packing == "best_fit":
            tokens = documents[d].tokens[: len(inputs) + 1 if is_long else None]
            is_placed = False
            while not is_placed:
                room = arguments.window * seq_len - sum(map(len, window))
                kept = -(-room // seq_len) * seq_len  # whole pieces of it
                is_placed = kept >= len(inputs)
                window.append(inputs[:kept])
                checksum += sum(tokens if is_placed else tokens[: kept + 1])
                inputs, tokens = inputs[kept:], tokens[kept:]
                if sum(map(len, window)) >= arguments.window * seq_len or len(window) == MOST_DOCUMENTS:
                    packs += best_fit(window, seq_len, checksum)
                    window, checksum = [], 0
            continue
        if arguments.packing == "next_fit" and unfinished and len(unfinished) + len(inputs) > seq_len:
            packs.append(unfinished)
            unfinished = []
        for row in inputs:
            unfinished.append(row)
            if len(unfinished) == seq_len:
                packs.append(unfinished)
                unfinished = []
    last = best_fit(window, seq_len, checksum)
    if last and arguments.tail == "drop":
        least = min(last, key=len)
        if len(least) < seq_len:
            last.remove(least)
            unfinished = least
    packs += last
    if unfinished and arguments.tail == "pad":
        packs.append(unfinished)
    elif unfinished:
        result.counts["tail_tokens"] += len(unfinished)

    stream = [(d, i) for d in range(len(documents)) for i in range(len(documents[d].tokens))]
    after = dict(zip(stream, [*stream[1:], None]))
    pieces: Counter[int] = Counter()
    for rows in [*packs, *([unfinished] if arguments.tail == "drop" else [])]:
        pieces.update({d for d, _ in rows})
    result.counts["split_documents"] = sum(count > 1 for count in pieces.values())

    for rows in packs:
        labels, positions, segments, spans = [], [], [], []
        for index, (d, i) in enumerate(rows):
            following = after[d, i]
            if arguments.packing != "wrap" and following is not None and following[0] != d:
                following = rows[index + 1] if index + 1 < len(rows) else None
            labels.append(label(d, i, following))
            if index == 0 or rows[index - 1][0] != d:
                spans.append([d, i, 0])
            spans[-1][2] += 1
            segments.append(len(spans))
            positions.append(spans[-1][2] - 1)
        if len(rows) == seq_len and not arguments.lookahead:
            labels[-1] = -100
        tokens = [documents[d].tokens[i] for d, i in rows]
        result.rows += [(d, i, token, y) for (d, i), token, y in zip(rows, tokens, labels)]
        if all(y == -100 for y in labels):
            result.counts["targetless_packs"] += 1
            result.counts["targetless_tokens"] += len(rows)
            continue
        padding = seq_len - len(rows)
        result.counts["tokens"] += len(rows)
        result.counts["targets"] += sum(y != -100 for y in labels)
        result.counts["padding"] += padding
        result.packs.append(
            {
                "tokens": tokens + [arguments.pad_id] * padding,
                "labels": labels + [-100] * padding,
                "position_ids": positions + list(range(padding)),
                "segment_ids": segments + [0] * padding,
                "seq_lens": [length for _, _, length in spans],
                "num_tokens": len(rows),
                "num_targets": sum(y != -100 for y in labels),
                "spans": [tuple(span) for span in spans],
            }
        )
    return result


def best_fit(window: list[list[tuple[int, int]]], seq_len: int, checksum: int) -> list[list[tuple[int, int]]]:
    """The packs of a window: pieces by size, each where it leaves the least room, the last filled among equals."""
    pieces = [rows[at : at + seq_len] for rows in window for at in range(0, len(rows), seq_len)]
    made: list[tuple[int, list[int]]] = []  # (number, pieces), in the order in which they changed last
    for index in sorted(range(len(pieces)), key=lambda index: -len(pieces[index])):
        free = [seq_len - sum(len(pieces[each]) for each in pack) for _, pack in made]
        least = min((rows for rows in free if rows >= len(pieces[index])), default=None)
        if least is None:
            made.append((len(made), [index]))
        else:
            number, pack = made.pop(max(place for place, rows in enumerate(free) if rows == least))
            made.append((number, [*pack, index]))
    packs = [[row for index in sorted(pack) for row in pieces[index]] for _, pack in sorted(made)]
    return [packs[number] for number in permutation(Purpose.PACK_ORDER, checksum, count=len(packs))]


def plain(got: Pack) -> dict[str, Any]:
    fields = {name: getattr(got, name) for name in Pack.__dataclass_fields__}
    fields = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    return fields | {"spans": [tuple(span) for span in got.spans]}


# Few ids, so that BOS, EOS, PAD, 0 and -1 turn up everywhere in a document; empty and one-token documents are common.
ids = st.integers(-1, 7)


@st.composite
def documents(draw: st.DrawFn, *, masks: bool = True, max_length: int = 20) -> list[TokenizedDocument]:
    found = []
    for body in draw(st.lists(st.lists(ids, max_size=max_length), max_size=12)):
        tokens = draw(st.sampled_from([body, body, [BOS, *body, EOS], [*body, EOS]]))
        mask = None
        if masks and draw(st.booleans()):
            mask = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
        found.append(TokenizedDocument(tokens, mask))
    return found


@st.composite
def arguments(
    draw: st.DrawFn, *, policies: tuple[Any, ...] = POLICIES, packings: tuple[str, ...] = PACKINGS
) -> Arguments:
    """Any combination that is allowed, but for overflow="error" (it gives no packs)."""
    packing = draw(st.sampled_from(packings))
    whole = packing != "wrap"
    if packing == "best_fit":
        policies = ("mask", "trim")
    return Arguments(
        seq_len=draw(st.integers(2, 9)),
        boundary=draw(st.sampled_from(policies)),
        packing=packing,
        overflow=draw(st.sampled_from(["split", "truncate", "drop"])) if whole else "split",
        tail=draw(st.sampled_from(["pad", "drop"])),
        lookahead=True if whole else draw(st.booleans()),
        window=draw(st.integers(1, 4)) if packing == "best_fit" else 64,
    )


def lossless(chosen: Arguments) -> Arguments:
    """The same with lookahead, tail="pad" and overflow="split": what the laws of conservation are about."""
    return replace(chosen, tail="pad", overflow="split", lookahead=True)


def packed(given_documents: list[TokenizedDocument], chosen: Arguments) -> list[Pack]:
    return list(pack(given_documents, **vars(chosen)))


def rows_of(packs: list[Pack]) -> dict[tuple[int, int], tuple[int, int]]:
    """(document, offset) -> (input, label) of all rows of packs, found through the spans alone."""
    found = {}
    for got in packs:
        row = 0
        for span in got.spans:
            for offset in range(span.offset, span.offset + span.length):
                assert (span.document, offset) not in found
                found[span.document, offset] = int(got.tokens[row]), int(got.labels[row])
                row += 1
        assert row == got.num_tokens
    return found


def all_rows(given_documents: list[TokenizedDocument], chosen: Arguments) -> dict[tuple[int, int], tuple[int, int]]:
    """As `rows_of`, with the rows of packs without a target put back: each has label -100."""
    found = rows_of(packed(given_documents, chosen))
    for d, document in enumerate(given_documents):
        for i in range(len(document.tokens) - (chosen.boundary == "trim")):
            found.setdefault((d, i), (document.tokens[i], -100))
    return dict(sorted(found.items()))


@every_policy
@given(docs=documents(), args=arguments())
def test_a_naive_implementation_gives_the_same_packs_and_counts(
    boundary: str | ReplaceBoundary, docs: list[TokenizedDocument], args: Arguments
) -> None:
    args = args.with_boundary(boundary)
    expected = naive(docs, args)
    assert [plain(got) for got in packed(docs, args)] == expected.packs
    packer = args.packer()
    feed_all(packer, docs)
    assert packer.counts == Counts(**expected.counts)
    # Nothing is lost without being counted.
    total = sum(max(len(doc.tokens) - (args.boundary == "trim"), 0) for doc in docs)
    counts = packer.counts
    lost = counts.truncated_tokens + counts.dropped_tokens + counts.tail_tokens + counts.targetless_tokens
    assert total == counts.tokens + lost
    assert packer.buffered_bytes == 0


@given(documents(), arguments(packings=("next_fit", "best_fit")))
def test_overflow_error_refuses_exactly_the_documents_that_are_longer_than_a_pack(
    docs: list[TokenizedDocument], args: Arguments
) -> None:
    rows = [len(doc.tokens) - (args.boundary == "trim") for doc in docs]
    args = replace(args, overflow="error")
    if max(rows, default=0) <= args.seq_len:
        assert [plain(got) for got in packed(docs, args)] == naive(docs, args).packs
    else:
        with pytest.raises(DocumentTooLongError, match=f"document {[n > args.seq_len for n in rows].index(True)} "):
            packed(docs, args)


# The laws.


@given(documents(masks=False), arguments())
def test_law_1_no_target_is_lost(docs: list[TokenizedDocument], args: Arguments) -> None:
    args = lossless(args)
    lengths = [len(doc.tokens) for doc in docs]
    for boundary in ("mask", "trim"):
        targets = sum(got.num_targets for got in packed(docs, replace(args, boundary=boundary)))
        assert targets == sum(max(length - 1, 0) for length in lengths)
    keep = sum(got.num_targets for got in packed(docs, replace(args, boundary="keep", packing="wrap", window=64)))
    assert keep == max(sum(lengths) - 1, 0)


@given(documents(masks=False), arguments())
def test_law_2_unpacking_by_spans_gives_every_document_back(docs: list[TokenizedDocument], args: Arguments) -> None:
    args = lossless(args)
    rows = rows_of(packed(docs, args))
    targetless = {(d, i) for d, i, _, y in naive(docs, args).rows if (d, i) not in rows and y == -100}
    for d, doc in enumerate(docs):
        num_rows = len(doc.tokens) - (args.boundary == "trim")
        for i in range(num_rows):
            assert (d, i) in targetless or rows[d, i][0] == doc.tokens[i]
        if args.boundary == "trim" and num_rows > 0:
            assert rows[d, num_rows - 1][1] == doc.tokens[-1]


@given(st.lists(st.lists(ids, max_size=15), max_size=10), arguments())
def test_law_3_the_eos_of_a_complete_document_is_a_target_exactly_once(
    bodies: list[list[int]], args: Arguments
) -> None:
    args = lossless(args)
    docs = [TokenizedDocument([*body, EOS]) for body in bodies]
    for boundary in POLICIES:
        rows = rows_of(packed(docs, args.with_boundary(boundary)))  # which refuses a row that is given twice
        for d, doc in enumerate(docs):
            before_last = len(doc.tokens) - 2
            if before_last < 0 or (boundary == "mask_eos_input" and doc.tokens[before_last] == EOS):
                continue
            assert rows[d, before_last][1] == EOS


@given(documents(), arguments(policies=("mask", "trim")), st.integers(2, 30), st.randoms(use_true_random=False))
def test_law_4_labels_do_not_depend_on_neighbours_order_or_seq_len(
    docs: list[TokenizedDocument], args: Arguments, other_seq_len: int, random: Any
) -> None:
    args = lossless(args)
    together = all_rows(docs, args)
    order = list(range(len(docs)))
    random.shuffle(order)
    shuffled = all_rows([docs[d] for d in order], replace(args, seq_len=other_seq_len))
    for place, d in enumerate(order):
        alone = all_rows([docs[d]], args)
        for (_, i), row in alone.items():
            assert together[d, i] == shuffled[place, i] == row


@given(documents(), arguments(policies=("mask", "trim")))
def test_law_5_no_label_crosses_documents(docs: list[TokenizedDocument], args: Arguments) -> None:
    # Each document has ids of its own, so that a label tells where it comes from.
    own = [
        TokenizedDocument([100 * d + i for i in range(len(doc.tokens))], doc.loss_mask)
        for d, doc in enumerate(docs, start=1)
    ]
    for (d, i), (token, label) in rows_of(packed(own, args)).items():
        assert token == 100 * (d + 1) + i
        assert label in (-100, token + 1)


@given(documents(), arguments(), st.integers(2, 40))
def test_law_6_rows_are_the_same_for_every_seq_len(
    docs: list[TokenizedDocument], args: Arguments, other_seq_len: int
) -> None:
    args = lossless(args)
    if args.boundary not in ("mask", "trim"):
        # Where whole documents meet is up to seq_len, and so are those labels.
        args = replace(args, packing="wrap", window=64)
    assert list(all_rows(docs, args).items()) == list(all_rows(docs, replace(args, seq_len=other_seq_len)).items())


@given(documents(), arguments())
def test_law_7_segments_positions_and_lengths_agree(docs: list[TokenizedDocument], args: Arguments) -> None:
    for got in packed(docs, args):
        padding = args.seq_len - got.num_tokens
        cu_seqlens = np.cumsum([0, *got.seq_lens, *([padding] if padding else [])])
        assert cu_seqlens[-1] == args.seq_len
        assert (np.diff(cu_seqlens) > 0).all()
        assert got.position_ids.max() < args.seq_len
        assert np.flatnonzero(got.position_ids == 0).tolist() == cu_seqlens[:-1].tolist()
        assert got.segment_ids[cu_seqlens[:-1]].tolist() == [
            *range(1, got.seq_lens.size + 1),
            *([0] if padding else []),
        ]
        assert len(got.spans) == got.seq_lens.size
        assert got.num_targets > 0


@given(documents(), arguments(), st.data())
def test_law_8_packs_do_not_depend_on_how_documents_are_fed(
    docs: list[TokenizedDocument], args: Arguments, data: st.DataObject
) -> None:
    expected = [comparable(rows) for rows in feed_all(args.packer(), docs)]
    by_chance = args.packer()
    rows: list[PackRows | None] = []
    waiting = list(docs)
    while waiting:
        some = [waiting.pop(0) for _ in range(data.draw(st.integers(0, len(waiting))))]
        if some:
            masks = [doc.loss_mask or [True] * len(doc.tokens) for doc in some]
            tokens = np.array([token for doc in some for token in doc.tokens], np.int32)
            all_of_them = all(doc.loss_mask is None for doc in some)
            by_chance.feed_all(
                tokens,
                [len(doc.tokens) for doc in some],
                None if all_of_them else np.array([bit for mask in masks for bit in mask], np.bool_),
            )
        else:
            doc = waiting.pop(0)
            dtype = data.draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64]))
            mask = doc.loss_mask if doc.loss_mask is None else np.array(doc.loss_mask, np.int8)
            by_chance.feed(np.array(doc.tokens, dtype), mask)
        rows += [by_chance.pop() for _ in range(data.draw(st.integers(0, 2)))]
    by_chance.finish()
    rows += iter(by_chance.pop, None)
    assert [comparable(got) for got in rows if got is not None] == expected
    split = iter(docs)
    assert [plain(got) for got in pack(split, **vars(args))] == [plain(got) for got in packed(docs, args)]


@given(documents(), arguments())
def test_law_9_loss_weights_per_document_sum_to_one(docs: list[TokenizedDocument], args: Arguments) -> None:
    args = lossless(args)
    num_targets = Counter(d for d, _, _, label in naive(docs, args).rows if label != -100)
    weights: Counter[int] = Counter()
    for got in packed(docs, args):
        row = 0
        for span in got.spans:
            targets = np.count_nonzero(got.labels[row : row + span.length] != -100)
            row += span.length
            if targets:
                weights[span.document] += targets / num_targets[span.document]
    assert weights == pytest.approx(dict.fromkeys(num_targets, 1.0))


# Restart: a new packer that begins where a pack's `next_document` and `next_row` say goes on in the same way.


def feed_all(packer: AnyPacker, docs: list[TokenizedDocument], row: int = 0) -> list[PackRows]:
    rows = []
    for doc in docs:
        packer.feed(doc.tokens, doc.loss_mask, row=row)
        row = 0
        rows += iter(packer.pop, None)
    packer.finish()
    return rows + list(iter(packer.pop, None))


def comparable(rows: PackRows, first_document: int = 0) -> dict[str, Any]:
    """Everything of a pack as plain values, with ordinals counted from `first_document`."""
    values = rows._asdict() | {"documents": None}
    values = {
        name: (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
    values["spans"] = [(span.document + first_document, span.offset, span.length) for span in rows.spans]
    values["next_document"] += first_document
    values["last_document"] += first_document if rows.given else 0
    return values


@every_policy
@given(docs=documents(), args=arguments())
def test_restarting_at_every_pack_gives_the_same_packs_and_counts_nothing_twice(
    boundary: str | ReplaceBoundary, docs: list[TokenizedDocument], args: Arguments
) -> None:
    args = args.with_boundary(boundary)
    packer = args.packer()
    whole, counts = [], []
    for doc in docs:
        packer.feed(doc.tokens, doc.loss_mask)
        for rows in iter(packer.pop, None):
            whole.append(rows)
            counts.append(packer.counts)
    packer.finish()
    for rows in iter(packer.pop, None):
        whole.append(rows)
        counts.append(packer.counts)
    for index, rows in enumerate(whole):
        first = rows.next_document
        if args.packing != "best_fit":
            # Canonical: behind the last row's document, or in it.
            last = rows.spans[-1]
            assert (first, rows.next_row) in {(last.document + 1, 0), (last.document, last.offset + last.length)}
        again = args.packer(given=rows.given)
        # Fed all at once, so that this run pops at other times than the whole one.
        for place, doc in enumerate(docs[first:]):
            again.feed(doc.tokens, doc.loss_mask, row=0 if place else rows.next_row)
        again.finish()
        rest, rest_counts = [], []
        for later in iter(again.pop, None):
            rest.append(comparable(later, first))
            rest_counts.append(sum_of(counts[index], again.counts))
        assert rest == [comparable(later) for later in whole[index + 1 :]]
        assert rest_counts == counts[index + 1 :]
        assert sum_of(counts[index], again.counts) == packer.counts


def sum_of(first: Counts, second: Counts) -> Counts:
    return Counts(*(a + b for a, b in zip(first, second)))


@given(documents(), arguments(packings=("wrap",)), st.integers(2, 9), st.sampled_from(["mask", "trim"]))
def test_a_restart_with_another_seq_len_or_policy_goes_on_with_the_next_row(
    docs: list[TokenizedDocument], args: Arguments, seq_len: int, boundary: str
) -> None:
    whole = feed_all(args.packer(), docs)
    assume(whole)
    cut = whole[len(whole) // 2]
    changed = replace(args, seq_len=seq_len, boundary=boundary, tail="pad", lookahead=True)
    rest = feed_all(changed.packer(), docs[cut.next_document :], row=cut.next_row)
    expected = {
        place: row for place, row in all_rows(docs, changed).items() if place >= (cut.next_document, cut.next_row)
    }
    spelled = rows_of([pack_of(rows, changed, cut.next_document) for rows in rest])
    assert spelled.items() <= expected.items()
    assert all(label == -100 for place, (_, label) in expected.items() if place not in spelled)


def pack_of(rows: PackRows, args: Arguments, first_document: int) -> Pack:
    arrays = expand_block(stack([rows], seq_len=args.seq_len, pad_id=args.pad_id))
    return Pack(
        **{name: array[0] for name, array in arrays.items()},
        seq_lens=rows.seq_lens.astype(np.int64),
        num_tokens=rows.tokens.size,
        num_targets=rows.num_targets,
        spans=tuple(span._replace(document=span.document + first_document) for span in rows.spans),
    )
