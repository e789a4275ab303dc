"""Small uneven corpora, the packs that they must give by the rules of the order, and jobs of any number of ranks.

The expected packs come from no module of the pipeline but the packer: the shards are read by tarfile, and the cuts
between lanes are found from its offsets.
"""

import bisect
import functools
import gzip
import io
import itertools
import json
import operator
import random
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

import streampack
from streampack.hashing import Bijection, Purpose, as_int64, permutation
from streampack.lanes.pieces import HELD_LINE_BYTES, HELD_SAMPLE_BYTES
from streampack.records import Counts
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer
from support.arguments import packed_dataset

NAMES = ("tokens", "labels", "position_ids", "segment_ids")
BOS, EOS = ByteTokenizer.bos_id, ByteTokenizer.eos_id
LANES = 12

Members = Sequence[tuple[str, bytes]]
Array = NDArray[np.int64]


# --- writing


def texts(count: int, *, seed: int = 0, longest: int = 150, first: int = 0) -> list[str]:
    """Texts of very different lengths, each with its own number in front."""
    choose = random.Random(seed)
    return [
        f"<{first + index}>" + "".join(choose.choices("abcdeé \n", k=choose.choice((0, 1, 9, 30, longest))))
        for index in range(count)
    ]


def write_tar(path: Path, members: Members, *, form: int = tarfile.PAX_FORMAT, mtime: float = 1) -> Path:
    """A shard at `path`, compressed as its suffix says; `mtime` with a fraction: a PAX header before every member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime  # type: ignore[assignment]  # a fraction is what PAX is for
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    data = buffer.getvalue()[: end + 1024]  # tarfile pads to 10 KiB, which would be lanes of nothing here
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def npy(values: Iterable[int], dtype: str = "<u2") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(list(values), dtype=dtype))
    return buffer.getvalue()


@dataclass(frozen=True)
class Corpus:
    shards: list[Path]
    documents: list[list[list[str]]]
    """The texts of each sample of each shard."""

    @property
    def urls(self) -> list[str]:
        return [str(shard) for shard in self.shards]

    @property
    def texts(self) -> list[str]:
        return [text for shard in self.documents for sample in shard for text in sample]


def write_corpus(
    folder: Path,
    shards: Sequence[tuple[str, Sequence[str]]],
    *,
    field: str = "txt",
    per_sample: int = 1,
    alike: bool = False,
) -> Corpus:
    """A shard for each (suffix, texts); they differ in PAX headers and in the members beside the wanted ones."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, documents, number = [], [], itertools.count()
    for index, (suffix, shard_texts) in enumerate(shards):
        members: list[tuple[str, bytes]] = []
        samples = [list(shard_texts[at : at + per_sample]) for at in range(0, len(shard_texts), per_sample)]
        for sample in samples:
            key = f"sample{next(number):04d}"
            if index % 3 == 1 and not alike:
                members.append((f"{key}.cls", b"7"))
            members.append((f"{key}.{field.partition(':')[0]}", _content(field, sample)))
            if index % 3 == 2 and not alike:
                members.append((f"{key}.meta.cls", b"8" * 600))
        paths.append(write_tar(folder / f"{index:03d}{suffix}", members, mtime=1.5 if index % 2 and not alike else 1))
        documents.append(samples)
    return Corpus(paths, documents)


def _content(field: str, sample: list[str]) -> bytes:
    if field == "txt":
        return sample[0].encode()
    if field == "npy":
        return npy(ByteTokenizer().encode(sample[0]))
    key = field.partition(":")[2]
    lines = [json.dumps({"id": 1, key: text}, ensure_ascii=False).encode() for text in sample]
    return lines[0] if field.startswith("json:") else b"\n\n".join(lines)


def uneven(folder: Path, *, field: str = "txt", per_sample: int = 1, scale: int = 1) -> Corpus:
    """Seven shards: one of two documents, one whose first document fills fifty packs, two that cannot be cut."""
    sizes = ((".tar", 2), (".tar", 40), (".tar.gz", 9), (".tar", 3), (".tar.zst", 14), (".tar", 25), (".tar", 60))
    shards, first = [], 0
    for index, (suffix, count) in enumerate(sizes):
        group = texts(count * scale, seed=index, first=first)
        if index == 3:
            group[0] += "long " * 320
        first += len(group)
        shards.append((suffix, group))
    return write_corpus(folder, shards, field=field, per_sample=per_sample)


def write_lanes(folder: Path, lanes: Sequence[Sequence[str]], *, field: str = "txt") -> Corpus:
    """A shard for each lane, all of one size, so that as many lanes in listed order are just these shards."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = field.partition(":")[0]
    members = [
        [(f"s{shard}-{number:03d}.{suffix}", _content(field, [text])) for number, text in enumerate(lane)]
        for shard, lane in enumerate(lanes)
    ]
    sizes = [sum(512 + -(-len(content) // 512) * 512 for _, content in each) for each in members]
    paths = [
        # A name without a dot is no sample's member.
        write_tar(folder / f"{shard}.tar", [("junk", bytes(max(sizes) - size)), *each], form=tarfile.USTAR_FORMAT)
        for shard, (each, size) in enumerate(zip(members, sizes, strict=True))
    ]
    assert len({path.stat().st_size for path in paths}) == 1
    return Corpus(paths, [[[text] for text in each] for each in lanes])


def read_corpus(shards: Sequence[Path]) -> Corpus:
    """The corpus in shards of one `.txt` a sample."""
    documents = []
    for path in shards:
        data = path.read_bytes()
        if path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = [(info.name, tar.extractfile(info)) for info in tar]
            documents.append([[file.read().decode()] for name, file in files if file and name.endswith(".txt")])
    return Corpus(list(shards), documents)


# --- what must come


@functools.cache
def _entries(path: Path) -> list[tuple[int, int, str]]:
    """Where each member begins (with its PAX header), where its own header is, and its key."""
    with tarfile.open(path) as tar:
        files = [info for info in tar if "." in info.name]
        return [(info.offset, info.offset_data - 512, info.name.partition(".")[0]) for info in files]


def _boundary(path: Path, cut: int) -> int:
    """The offset of the first sample that belongs to the right of a cut; the shard's size, if nothing is there."""
    if cut <= 0:
        return 0
    members = _entries(path)
    passed = bisect.bisect_left(members, cut, key=operator.itemgetter(1))
    base = passed + 1  # its sample, too, is the left side's
    right = next((index for index in range(base + 1, len(members)) if members[index][2] != members[base][2]), None)
    return path.stat().st_size if right is None else members[right][0]


def _samples(path: Path) -> list[int]:
    """The offset of each sample of a plain shard."""
    members = _entries(path)
    return [offset for at, (offset, _, key) in enumerate(members) if at == 0 or members[at - 1][2] != key]


def epoch_order(corpus: Corpus, epoch: int, *, seed: int = 0, shuffle: Any = "shards") -> list[int]:
    count = len(corpus.shards)
    return permutation(Purpose.SHARD_ORDER, seed, epoch, count=count).tolist() if shuffle else list(range(count))


def lane_texts(
    corpus: Corpus,
    lane: int,
    epoch: int,
    *,
    num_lanes: int = LANES,
    seed: int = 0,
    shuffle: Any = True,
    whole: Collection[int] = (),
) -> list[str]:
    """What a lane reads in an epoch, by the rules: its range of bytes of the epoch's line, snapped to samples."""
    sizes = [path.stat().st_size for path in corpus.shards]
    if shuffle is True or isinstance(shuffle, streampack.Shuffle):
        order = streampack.Shuffle() if shuffle is True else shuffle
        return window_texts(corpus, lane, epoch, order, num_lanes=num_lanes, seed=seed, whole=whole)
    begin, end = lane * sum(sizes) // num_lanes, (lane + 1) * sum(sizes) // num_lanes
    found: list[str] = []
    start = 0
    for shard in epoch_order(corpus, epoch, seed=seed, shuffle=shuffle):
        path, stop = corpus.shards[shard], start + sizes[shard]
        if path.suffix != ".tar" or shard in whole:
            chosen = corpus.documents[shard] if begin <= start < end else []
        elif begin < stop and end > start:
            first = _boundary(path, begin - start)
            last = path.stat().st_size if end >= stop else _boundary(path, end - start)
            pairs = zip(_samples(path), corpus.documents[shard], strict=True)
            chosen = [sample for offset, sample in pairs if first <= offset < last]
        else:
            chosen = []
        found += [text for sample in chosen for text in sample]
        start = stop
    return found


def window_texts(
    corpus: Corpus,
    lane: int,
    epoch: int,
    order: streampack.Shuffle,
    *,
    num_lanes: int,
    seed: int,
    whole: Collection[int],
) -> list[str]:
    """The same by the rules of blocks and windows; one that meets its bound is of one `.txt`, or lines, a sample."""
    lines = any(len(sample) > 1 for shard in corpus.documents for sample in shard)
    expands = lines or bool(whole) or any(path.suffix != ".tar" for path in corpus.shards)
    sizes = [path.stat().st_size for path in corpus.shards]
    step = min(order.block_bytes, sum(sizes) // (32 * num_lanes))
    step = max(step, 4096)
    bound = int((2 if expands else 1.25) * order.window * step)
    blocks: list[list[tuple[int, int, str]]] = []
    """(position of the sample, record, text) of each document of each block."""
    for shard, (path, samples, size) in enumerate(zip(corpus.shards, corpus.documents, sizes, strict=True)):
        places = _samples(path) if path.suffix == ".tar" else range(len(samples))
        found = [(at, *each) for at, sample in zip(places, samples, strict=True) for each in enumerate(sample)]
        if path.suffix != ".tar" or shard in whole:
            blocks.append(found)
            continue
        for begin in range(0, size, step):
            first, last = _boundary(path, begin), size if begin + step >= size else _boundary(path, begin + step)
            blocks.append([each for each in found if first <= each[0] < last])
    numbers = Bijection(Purpose.BLOCK_ORDER, seed, epoch, count=len(blocks)).of(np.arange(len(blocks))).tolist()
    mine = numbers[lane * len(blocks) // num_lanes : (lane + 1) * len(blocks) // num_lanes]
    given: list[str] = []
    for first in range(0, len(mine), order.window):
        pieces = range(first, min(first + order.window, len(mine)))
        begin_at, window, num_bytes = (first, -1, 0), [], 0
        group = [(piece, *each) for piece in pieces for each in blocks[mine[piece]]]
        for piece_of, at, record, text in group:
            if num_bytes >= bound:
                given += _permuted(window, seed, epoch, lane, *begin_at)
                begin_at, window, num_bytes = (piece_of, at, record), [], 0
            window.append(text)
            size = len(_content("jsonl:text" if lines else "txt", [text]))
            num_bytes += size + (HELD_LINE_BYTES if lines else HELD_SAMPLE_BYTES)
        given += _permuted(window, seed, epoch, lane, *begin_at)
    return given


def _permuted(window: list[str], *words: int) -> list[str]:
    """`words`: seed, epoch, lane, and piece, sample and record with which the window begins."""
    return [window[index] for index in permutation(Purpose.WINDOW_ORDER, *words, count=len(window)).tolist()]


def tokens_of(text: str) -> list[int]:
    return [BOS, *ByteTokenizer().encode(text).tolist(), EOS]


def lane_packs(
    corpus: Corpus,
    lane: int,
    *,
    seq_len: int,
    epochs: int | None = None,
    num_lanes: int = LANES,
    seed: int = 0,
    shuffle: Any = True,
    whole: Collection[int] = (),
    per_text: Callable[[str], list[list[int]]] = lambda text: [tokens_of(text)],
    **packing: Any,
) -> Iterator[Array]:
    """The packs of a lane as int64 [4, seq_len], by `streampack.pack` over its documents; epochs=None: for ever."""

    def documents() -> Iterator[list[int]]:
        order: dict[str, Any] = {"num_lanes": num_lanes, "seed": seed, "shuffle": shuffle, "whole": whole}
        for epoch in range(1000 if epochs is None else epochs):  # the end of 1000 says that a lane is empty
            for text in lane_texts(corpus, lane, epoch, **order):
                yield from per_text(text)

    for pack in streampack.pack(documents(), seq_len=seq_len, bos_id=BOS, eos_id=EOS, **packing):
        yield np.stack([getattr(pack, name) for name in NAMES])


def expected(corpus: Corpus, num_packs: int, *, num_lanes: int = LANES, **arguments: Any) -> list[Array]:
    """The first global packs of an endless run: pack number i is pack i // L of lane i % L."""
    lanes = [lane_packs(corpus, lane, num_lanes=num_lanes, **arguments) for lane in range(num_lanes)]
    return [next(lanes[number % num_lanes]) for number in range(num_packs)]


# --- running


def dataset(corpus: Corpus | Sequence[str], **changes: Any) -> streampack.PackedDataset:
    """Fast settings: bytes as tokens, packs of 32, twelve lanes; `changes` as `packed_dataset` takes them."""
    urls = corpus.urls if isinstance(corpus, Corpus) else list(corpus)
    return packed_dataset(urls, **{"seq_len": 32, "num_lanes": LANES, **changes})


def rows(batch: Mapping[str, Any]) -> list[Array]:
    """The packs of a batch, each int64 [4, seq_len]."""
    return list(np.stack([batch[name].numpy() for name in NAMES], axis=1))


class Job:
    """The ranks of a run, by hand in this process, in step.

    Workers are forked from this process unless a test says otherwise: a server for each of some hundred loaders would
    take minutes. Tests that make loaders by themselves have the default.
    """

    def __init__(
        self,
        data: streampack.PackedDataset | Callable[[], streampack.PackedDataset],
        ranks: int = 1,
        workers: int = 0,
        batch_size: int = 1,
        *,
        state: Mapping[str, Any] | None = None,
        allow: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self.ranks = ranks
        self.batch_size = batch_size
        options = {"multiprocessing_context": "fork", **options}
        self.loaders = [
            streampack.PackedDataLoader(
                data if isinstance(data, streampack.PackedDataset) else data(),
                batch_size,
                num_workers=workers,
                dp_rank=rank,
                dp_size=ranks,
                **options,
            )
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in self.loaders:
                loader.load_state_dict(state, allow=set(allow))
        self._iterators: list[Iterator[dict[str, Any]]] | None = None
        self._numbers: list[Iterator[int]] = []

    @property
    def num_lanes(self) -> int:
        return self.loaders[0].num_lanes

    @property
    def global_pack(self) -> int:
        return int(self.loaders[0].state_dict().get("global_pack", 0))  # of a validation set it has none

    def step(self, batches: int = 1) -> dict[int, Array]:
        """So many batches of every rank (fewer at a pass's end), as global number -> pack."""
        if self._iterators is None:
            begin = self.global_pack
            self._numbers = [
                itertools.count(begin + (rank - begin) % self.ranks, self.ranks) for rank in range(self.ranks)
            ]
            self._iterators = [iter(loader) for loader in self.loaders]
        packs: dict[int, Array] = {}
        for _ in range(batches):
            for iterator, numbers in zip(self._iterators, self._numbers, strict=True):
                batch = next(iterator, None)
                packs |= _numbered(rows(batch), numbers) if batch is not None else {}
        return packs

    def run_out(self) -> tuple[dict[int, Array], list[int]]:
        """The rest of a finite pass, and how many batches each rank gave."""
        self.step(0)
        assert self._iterators is not None
        packs: dict[int, Array] = {}
        counts = []
        for iterator, numbers in zip(self._iterators, self._numbers, strict=True):
            batches = list(iterator)
            packs |= _numbered([row for batch in batches for row in rows(batch)], numbers)
            counts.append(len(batches))
        self._iterators = None
        return packs, counts

    def state(self) -> dict[str, Any]:
        """The ranks' states joined, as they are after a journey through JSON."""
        merged: dict[str, Any] = json.loads(
            to_json(streampack.merge_state_dicts(loader.state_dict() for loader in self.loaders))
        )
        return merged

    def digest(self) -> int:
        return as_int64(sum(loader.digest() for loader in self.loaders))

    def stats(self) -> dict[str, int]:
        """The counts of the lanes, added up over the ranks."""
        each = [loader.stats() for loader in self.loaders]
        names = set(Counts._fields)
        return {name: sum(int(stats[name]) for stats in each) for name in sorted(names)}

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def documents_of(packs: Mapping[int, Array], num_lanes: int = LANES) -> list[str]:
    """The texts in the packs of a whole pass, lane after lane: from each BOS to its EOS."""
    found = []
    for lane in range(num_lanes):
        own = [packs[number] for number in sorted(packs) if number % num_lanes == lane]
        stream = np.concatenate([pack[0][pack[3] > 0] for pack in own]).tolist() if own else []
        begin = 0
        while begin < len(stream):
            assert stream[begin] == BOS
            # A pack of an EOS alone has no target and is not given, so the lane's last EOS may be missing.
            end = stream.index(EOS, begin) if EOS in stream[begin:] else len(stream)
            found.append(bytes(token - 3 for token in stream[begin + 1 : end]).decode())
            begin = end + 1
    return found


def _numbered(packs: list[Array], numbers: Iterator[int]) -> dict[int, Array]:
    return {next(numbers): pack for pack in packs}


def assert_equal(packs: Mapping[int, Array], wanted: Sequence[Array], *, begin: int = 0) -> None:
    """The packs are those from number `begin` on, without a gap, element by element."""
    assert sorted(packs) == list(range(begin, begin + len(packs)))
    for number, pack in packs.items():
        np.testing.assert_array_equal(pack, wanted[number], err_msg=f"global pack {number}")
