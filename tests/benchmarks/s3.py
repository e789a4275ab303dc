"""Shards to packs from an S3 server, beside plain streaming of the same objects by botocore, which boto3 is made of.

    python tests/benchmarks/s3.py [corpus.jsonl.zst ...] [--megabytes 256] [--rounds 5] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text. A SeaweedFS of its own, on the loopback.
Out: for text and for token ids: stored bytes per second of the clock, as a multiple of what
     `get_object(...)["Body"].iter_chunks(1 MiB)` does, object by object, looking at no byte: median and range.

"read" is streampack's storage alone: ranges, read ahead and checked for length. "packs" is all of it: to packs of 4096,
in this process, with the fastest engine for text. A server on the same machine takes its share of the cores, and a
network would be slower: this says what reading costs beside a client that does nothing else, not how fast a bucket is.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import texts

from streampack import PackedDataset
from streampack.cli.bench.stopwatch import Spread, Variant, Work, interleave, wall_ratio
from streampack.storage.access import StorageReader
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from support import servers

CHUNK = 1 << 20
SEQ_LEN = 4096
TOKENS_PER_DOCUMENT = 1000
NUM_SHARDS = 4


def main() -> None:
    """Print a table; write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--model", help="a SentencePiece model; by default Mistral's")
    parser.add_argument("--megabytes", type=float, default=256, help="of each kind of shards, four of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = arguments.model or texts.mistral_model()
    text = texts.load(arguments.corpus, num_slices=1, megabytes=arguments.megabytes)[0].slices[0]
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for field, documents in (("txt", text), ("npy", tokens(text, model, int(arguments.megabytes * 1e6)))):
            urls = upload(Path(folder, field), documents, field)
            results[field] = compare(urls, field, model, arguments.rounds)
    for field, rows in results.items():
        for name, value in rows.items():
            if name == "plain":
                line = f"{value['median'] / 1e6:8.0f} ({value['low'] / 1e6:.0f} to {value['high'] / 1e6:.0f}) MB/s"
            else:
                line = f"{value['median']:8.3f} ({value['low']:.3f} to {value['high']:.3f}) x plain"
            print(f"{field:4} {name:6} {line}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results), "utf-8")


def tokens(documents: Sequence[str], model: str, num_bytes: int) -> list[np.ndarray]:
    """The ids of some of the documents, again and again, as so many bytes of int32, cut into documents."""
    encode = SentencePieceTokenizer(Path(model).read_bytes()).encode
    ids = np.concatenate([encode(document) for document in documents[:500]]).astype(np.int32)
    ids = np.resize(ids, num_bytes // 4)
    return np.split(ids, range(TOKENS_PER_DOCUMENT, len(ids), TOKENS_PER_DOCUMENT))


def upload(folder: Path, documents: Sequence[Any], field: str) -> list[str]:
    paths = texts.shards(folder, documents, field=field, num_shards=NUM_SHARDS).shards
    return [servers.put_s3(f"bench/{field}/{Path(path).name}", Path(path).read_bytes()) for path in paths]


def compare(urls: list[str], field: str, model: str, rounds: int) -> dict[str, dict[str, float]]:
    """Spreads: of the plain client in bytes per second, of the others as multiples of it in the same round."""
    client = servers.s3_client(servers.s3())
    options = servers.s3().options
    sizes = {url: client.head_object(Bucket=servers.BUCKET, Key=key(url))["ContentLength"] for url in urls}
    total = sum(sizes.values())

    def plain() -> int:
        done = 0
        for url in urls:
            body = client.get_object(Bucket=servers.BUCKET, Key=key(url))["Body"]
            done += sum(len(chunk) for chunk in body.iter_chunks(CHUNK))
        return done

    storage = StorageReader(options)

    def read() -> int:
        return sum(len(chunk) for url, size in sizes.items() for chunk in storage.chunks(url, size=size))

    def packs(_: int) -> Work:
        dataset = PackedDataset(
            urls,
            None if field == "npy" else model,
            SEQ_LEN,
            field=field,
            num_lanes=NUM_SHARDS,
            epochs=1,
            storage=options,
            **({"add_bos": False, "add_eos": False} if field == "npy" else {}),
        )
        dataset.list_shards()  # what a run does once is not timed: the list, the tokenizer

        def work() -> int:
            assert sum(1 for _ in dataset) > total // SEQ_LEN // 16
            return total

        return work

    def always(work: Callable[[], int]) -> Callable[[int], Work]:
        return lambda _: work

    assert plain() == read() == total, "not all of the bytes"
    works = {"plain": always(plain), "read": always(read), "packs": packs}
    readings = interleave([Variant(name, work) for name, work in works.items()], rounds + 1)
    found = {"plain": Spread.of([reading.per_wall_s for reading in readings["plain"]])}
    found |= {name: wall_ratio(readings[name], readings["plain"]) for name in ("read", "packs")}
    return {name: asdict(spread) for name, spread in found.items()}


def key(url: str) -> str:
    return url.removeprefix(f"s3://{servers.BUCKET}/")


if __name__ == "__main__":
    main()
