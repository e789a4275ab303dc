"""What a mix of sources costs: CPU against one source over the same bytes, resumes, and memory of many streams.

    python tests/benchmarks/sources.py [--text english.jsonl.zst] [--pairs 5] [--megabytes 45] [--memory]

The same shards are read as one source and as five, in turn, in this process and without workers, with a SentencePiece
tokenizer, in one lane: blocks of 45 MB are then as large for the five as for the one, as they are at real scale. The
first packs do not count: each source has then read ahead what it keeps on having ahead, five of them more than one. A
resume is of a state in the middle of the run: requests and bytes up to the first batch. With --memory, 20 sources on 60
lanes of one rank: what the lanes need, as the constructor reckons, against what the process grows by.
"""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import texts

from streampack import Limits, PackedDataLoader, PackedDataset, Source
from streampack.lanes.budget import MIN_SHARE_BYTES, LaneNeeds
from streampack.testing import write_shards

MODEL = Path(__file__).parents[2] / "streampack" / "examples" / "data" / "devil.model"
SOURCES = 5
NUM_PACKS, FIRST_BATCHES = 2400, 60


def main() -> None:
    """Print the ratios."""
    parser = texts.parser_of(__doc__, megabytes=45)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="only the memory of 20 sources on 60 lanes")
    arguments = parser.parse_args()
    documents = texts.chosen(arguments).slices[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(SOURCES):
            part = documents[index::SOURCES]
            write_shards(folder / str(index), part, documents_per_shard=max(len(part) // 4, 1))
        if arguments.memory:
            memory(folder)
        else:
            pairs(folder, arguments.pairs)


def pairs(folder: Path, count: int) -> None:
    one = sorted(map(str, folder.glob("*/*.tar")))
    five = {f"s{index}": Source(str(folder / str(index)), 1.0) for index in range(SOURCES)}
    ratios, resumes = [], []
    for number in range(count):
        order = (one, five) if number % 2 == 0 else (five, one)
        found = {id(data): speed(data) for data in order}
        ratios.append(found[id(five)][0] / found[id(one)][0])
        resumes.append((found[id(one)][1], found[id(five)][1]))
        print(f"pair {number}: {found[id(one)][0]:,.0f} and {found[id(five)][0]:,.0f} tokens a CPU second")
    print(f"{SOURCES} sources / one source: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"first batch of a resume, (requests, bytes) of one source and of {SOURCES}: {resumes[-1]}")


def speed(data: object) -> tuple[float, tuple[float, float]]:
    """Tokens a CPU second; requests and bytes of the first batch of a resume."""

    def loader(state: object = None) -> PackedDataLoader:
        course = {"num_lanes": 1, "num_packs": NUM_PACKS}
        dataset = PackedDataset(data, str(MODEL), seq_len=2048, engine="sentencepiece", **course)  # type: ignore[arg-type]  # both kinds
        made = PackedDataLoader(dataset, batch_size=12, num_workers=0)
        if state is not None:
            made.load_state_dict(state)  # type: ignore[arg-type]  # a state
        return made

    with loader() as running:
        for number, _ in enumerate(running):
            if number == FIRST_BATCHES:
                begin, before = time.process_time(), running.stats()["tokens"]
            if number == 100:
                state = running.state_dict()
        seconds = time.process_time() - begin
        tokens = running.stats()["tokens"] - before
    with loader(state) as resumed:
        next(iter(resumed))
        stats = resumed.stats()
    return tokens / seconds, (stats["requests"], stats["bytes_read"])


def memory(folder: Path) -> None:
    mixes = {f"s{index}": Source(str(folder / str(index % SOURCES) / "*.tar"), 1.0) for index in range(SOURCES)}
    copies = Path(tempfile.mkdtemp(dir=folder))
    for index in range(SOURCES, 20):
        (copies / str(index)).mkdir()
        for shard in (folder / str(index % SOURCES)).glob("*.tar"):
            (copies / str(index) / shard.name).write_bytes(shard.read_bytes())
        mixes[f"s{index}"] = Source(str(copies / str(index)), 1.0)
    needed = 0
    for budget in (None, "least"):
        limits = Limits() if budget is None else Limits(buffer_bytes=needed)
        dataset = PackedDataset(mixes, str(MODEL), seq_len=4096, num_lanes=60, limits=limits, engine="sentencepiece")
        needs = LaneNeeds.of(dataset.run())
        needed = 60 * (needs.sources * MIN_SHARE_BYTES + needs.windows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with PackedDataLoader(dataset, batch_size=60, num_workers=0) as running:
            for number, _ in enumerate(running):
                if number == 60:
                    break
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        what = f"20 sources, 60 lanes, budget {budget or 'default'}"
        print(f"{what}: {needed / 2**20:,.0f} MiB needed, {grown:,.0f} MB grown")


if __name__ == "__main__":
    main()
