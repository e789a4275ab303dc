"""Makes the demo data in `streampack/examples/data`: small shards of real text, and a tokenizer trained on them.

In: the dictionary files of Ambrose Bierce's "The Devil's Dictionary" (1911, public domain), as Debian packages it:

    apt-get download dict-devil && dpkg -x dict-devil_*.deb devil
    python -m streampack.examples.make_data devil

Out: one document per entry, in the book's order, in shards of very uneven size (one of two documents, one compressed
as a whole), and a SentencePiece BPE model with byte fallback. Nothing of the package but Bierce's entries gets in:
neither the preface nor the headers that the transcribers and the dictionary software added.

The same input gives the same shards, byte for byte (for the compressed one: the same tar inside). A model trained by
another release of SentencePiece may differ, so the one that ships is made again only where it must.
"""

import argparse
import gzip
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import webdataset
import zstandard

DATA = Path(__file__).parent / "data"
MODEL_NAME = "devil.model"
SHARD_DOCUMENTS = {
    "devil-00000.tar": 150,
    "devil-00001.tar": 2,
    "devil-00002.tar": 247,
    "devil-00003.tar": 37,
    "devil-00004.tar": 96,
    "devil-00005.tar": 213,
    "devil-00006.tar": 11,
    "devil-00007.tar": 140,
    "devil-00008.tar.zst": 103,
}
"""How many documents each shard holds: uneven on purpose, as real shards are."""
VOCAB_SIZE = 2048

_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class Entry(NamedTuple):
    """One document: the sample's key in its shard, and the text."""

    key: str
    text: str


def _number(digits: str) -> int:
    """The number that a dictd index writes in base 64, most significant digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64.index(digit)
    return value


def read_dictionary(folder: Path) -> list[Entry]:
    """The entries of the dictd database `devil` somewhere under `folder`, in the order of the book.

    Raises:
        FileNotFoundError: `devil.dict.dz` or `devil.index` is not under `folder`.
    """
    paths = sorted(folder.rglob("devil.dict.dz"))
    if not paths:
        raise FileNotFoundError(f"no devil.dict.dz under {folder}: unpack Debian's package dict-devil there")
    content = gzip.decompress(paths[0].read_bytes())
    headwords: dict[int, str] = {}
    ends: dict[int, int] = {}
    added: list[int] = []
    for line in (paths[0].parent / "devil.index").read_text("ascii").splitlines():
        headword, first, length = line.split("\t")
        start = _number(first)
        if headword.startswith("00database"):
            added.append(start)
        else:
            headwords.setdefault(start, headword)  # variants of a headword point to the same text
            ends[start] = start + _number(length)
    entries = []
    for index, start in enumerate(sorted(headwords)):
        end = min([ends[start], *(other for other in added if other > start)])  # the last entry runs into an added one
        key = f"{index:04d}-{re.sub('[^a-z]+', '-', headwords[start])}"
        entries.append(Entry(key, content[start:end].decode("ascii").strip("\n")))
    return entries


def read_shards(folder: Path) -> Iterator[Entry]:
    """The entries in the shards of `folder`, in order: what `write_shards` was given."""
    for name in SHARD_DOCUMENTS:
        content = (folder / name).read_bytes()
        if name.endswith(".zst"):
            content = zstandard.decompress(content)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                yield Entry(member.name.removesuffix(".txt"), file.read().decode())


def write_shards(entries: Iterable[Entry], folder: Path) -> None:
    """Deals the entries to the shards of `SHARD_DOCUMENTS`, written by webdataset with fixed times and owners."""
    stream = iter(entries)
    for name, num_documents in SHARD_DOCUMENTS.items():
        buffer = io.BytesIO()
        with webdataset.TarWriter(buffer, mtime=0) as writer:
            for entry in islice(stream, num_documents):
                writer.write({"__key__": entry.key, "txt": entry.text})
        content = buffer.getvalue()
        if name.endswith(".zst"):
            content = zstandard.compress(content, level=19)
        (folder / name).write_bytes(content)
    assert next(stream, None) is None, "SHARD_DOCUMENTS has room for fewer documents than there are"


def train_model(entries: Iterable[Entry], path: Path) -> None:
    """Trains a BPE model with byte fallback that gives every text back exactly; its ids: unk 0, bos 1, eos 2, pad 3."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for entry in entries for line in entry.text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,  # verse is indented
        add_dummy_prefix=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def main() -> None:
    """Make the shards, and the model where that is asked for."""
    parser = argparse.ArgumentParser(description="Make streampack's demo data from Debian's package dict-devil.")
    parser.add_argument("dictionary", type=Path, help="folder with devil.dict.dz and devil.index somewhere under it")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to (default: where the package is)")
    parser.add_argument("--model", action="store_true", help="also train the model")
    arguments = parser.parse_args()
    entries = read_dictionary(arguments.dictionary)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_shards(entries, arguments.out)
    if arguments.model:
        train_model(entries, arguments.out / MODEL_NAME)
    for path in sorted(arguments.out.glob("devil*")):
        print(f"{path.name:20} {path.stat().st_size:9,} bytes")


if __name__ == "__main__":
    main()
