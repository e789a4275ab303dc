"""The demo data that ships: complete, as the script makes it, and what its README says of it."""

import gzip
import hashlib
from pathlib import Path

import pytest
import sentencepiece
import zstandard

from streampack.examples.make_data import (
    DATA,
    MODEL_NAME,
    SHARD_DOCUMENTS,
    Entry,
    read_dictionary,
    read_shards,
    train_model,
    write_shards,
)


def uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    return zstandard.decompress(content) if path.suffix == ".zst" else content


def test_the_script_makes_the_shards_that_ship(tmp_path: Path) -> None:
    write_shards(read_shards(DATA), tmp_path)
    for name in SHARD_DOCUMENTS:
        assert uncompressed(tmp_path / name) == uncompressed(DATA / name), name


def test_the_text_is_the_dictionary_and_nothing_else() -> None:
    entries = list(read_shards(DATA))
    assert len(entries) == 999
    assert [entries[0].key, entries[-1].key] == ["0000-abasement", "0998-zoology"]
    assert entries[-1].text.endswith("cow sheds its horn every two years.")
    text = "\n".join(entry.text for entry in entries)
    assert not [word for word in ("Wiretap", "Aloysius", "dictfmt", "PREFACE", "Released") if word in text]
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "b225ae368f401a66d82661526626756cf0c2f32f8bab7c75d9a02c8d846b67e6"
    )


def test_shards_are_uneven_and_the_folder_is_small() -> None:
    assert sorted(path.name for path in DATA.glob("*.tar*")) == sorted(SHARD_DOCUMENTS)
    assert SHARD_DOCUMENTS["devil-00001.tar"] == 2
    assert max(SHARD_DOCUMENTS.values()) > 100 * min(SHARD_DOCUMENTS.values())
    assert len(gzip.compress(b"".join(path.read_bytes() for path in sorted(DATA.iterdir())))) < 400_000


def test_the_model_gives_back_every_text_and_any_other() -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / MODEL_NAME))
    assert (model.vocab_size(), model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (2048, 0, 1, 2, 3)
    for text in [*(entry.text for entry in read_shards(DATA)), "  é 漢字\n\t<s> 🙂 ", ""]:
        assert model.decode(model.encode(text)) == text
    assert (DATA / MODEL_NAME).stat().st_size < 60_000


def test_training_twice_gives_the_same_model(tmp_path: Path) -> None:
    entries = list(read_shards(DATA))[:200]
    for name in ("a", "b"):
        train_model(entries, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def dictd(texts: list[tuple[list[str], str]], folder: Path) -> None:
    """Writes a dictd database: a gzip file of texts, and an index of headword, offset and length in base 64."""

    def digits(number: int) -> str:
        symbols = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        text = symbols[number % 64]
        while number := number // 64:
            text = symbols[number % 64] + text
        return text

    content, lines = "", []
    for headwords, text in texts:
        lines += [f"{headword}\t{digits(len(content))}\t{digits(len(text))}" for headword in headwords]
        content += text
    (folder / "devil.dict.dz").write_bytes(gzip.compress(content.encode()))
    (folder / "devil.index").write_text("\n".join(sorted(lines)) + "\n")


def test_entries_come_in_the_books_order_without_what_was_added(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    long = "YEAR, n.  " + "x" * 5000
    dictd(
        [
            (["00databaseinfo"], "Entered by someone\n\nPREFACE\n\n"),
            (["zebra", "zebu"], "ZEBRA, n.\n\n    indented\n\n"),
            (["year"], long + "\n\n"),
            (["april fool"], "APRIL FOOL, n.\n"),
            (["00databasealphabet"], " abc\n"),
        ],
        tmp_path / "usr",
    )
    assert read_dictionary(tmp_path) == [
        Entry("0000-zebra", "ZEBRA, n.\n\n    indented"),
        Entry("0001-year", long),
        Entry("0002-april-fool", "APRIL FOOL, n."),
    ]


def test_a_folder_without_the_dictionary_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no devil.dict.dz under .*: unpack Debian's package dict-devil there"):
        read_dictionary(tmp_path)
