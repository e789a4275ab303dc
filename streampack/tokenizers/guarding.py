"""A `tokenizer.json` changed so that no text becomes the id of a special token, and no id depends on chance.

In:  the file's content, and the names of its special tokens. Out: the content that the library gets, and what is to be
     replaced in the ids that it then gives.
Never: another id for a text in which the library finds no special token; a character that is left out in silence.

The library stops the search for the text of special tokens (`encode_special_tokens`). Its models can still come to
them, because they are in the vocabulary: BPE by its merges, by `ignore_merges` or as a single character, the others as
a piece or a word. So a special token gets another name in the vocabulary, one that nobody can write; its id stays.
Where merges make it, or it is a character, its old name becomes a **stand-in** with an id above all others, so that
longer pieces are still made of it. A stand-in that is left over gives the ids of its text without the special token.
"""

import logging
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streampack.errors import TokenizerError

_log = logging.getLogger(__name__)
_CHANCE = ("dropout", "alpha", "nbest_size")
"""Settings of a model that make its ids random."""
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_BYTE_LEVEL = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 324))))
"""The characters that stand for bytes in a byte-level vocabulary."""
_NOT_IN_UTF8 = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """What `guard` makes of a file."""

    config: dict[str, Any]
    """For the library."""
    stand_ins: Mapping[int, str]
    """Id of each stand-in -> its text."""
    without: dict[str, Any] | None
    """A tokenizer that gives the ids of those texts; None where there are none."""
    lost_id: int | None
    """The id for a character that has no token, where the library would leave it out; None: every one has a token."""


def guard(config: Mapping[str, Any], special: Collection[str], ends: Collection[str], vocab_size: int) -> Guarded:
    """The file with its special tokens out of reach of any text.

    Args:
        config: the file's content; it stays as it is.
        special: names of the special tokens.
        ends: those of them that begin and end documents.
        vocab_size: the largest id, and one.

    Raises:
        TokenizerError: ordinary text needs one of the tokens.
    """
    model = dict(config["model"])
    added = [dict(token) for token in config.get("added_tokens", [])]
    for name in _CHANCE:
        if value := model.get(name):
            _log.warning("%s=%s of the tokenizer's file is switched off: ids do not depend on chance", name, value)
        if name in model:
            model[name] = None
    if model.get("byte_fallback"):
        for name in filter(_BYTE_TOKEN.fullmatch, ends):
            raise TokenizerError(f"the token {name!r} cannot begin or end documents: it stands for a byte of text")
        special = [name for name in special if not _BYTE_TOKEN.fullmatch(name)]
    names = {name: f"\ufdd0{secrets.token_hex(16)}\ufdd0" for name in special}
    guarded = {**config, "model": model, "added_tokens": added}
    stand_ins: dict[int, str] = {}
    lost_id, without = None, None
    if "merges" in model:
        stand_ins, without, lost_id = _guard_bpe(guarded, names, ends, vocab_size)
    else:
        _guard_pieces(model, names, ends)
    vocab = model["vocab"]
    known = {piece for piece, *_ in vocab} if isinstance(vocab, list) else vocab
    for token in added:
        if (name := token["content"]) in names:
            token |= {"special": True, "content": names[name] if names[name] in known else name}
    return Guarded(config=guarded, stand_ins=stand_ins, without=without, lost_id=lost_id)


def _guard_pieces(model: dict[str, Any], names: Mapping[str, str], ends: Collection[str]) -> None:
    """Give the special tokens other names in a model that finds whole pieces (Unigram, WordPiece) or words."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        unknown = None if model.get("unk_id") is None else vocab[model["unk_id"]][0]
        model["vocab"] = [[names.get(piece, piece), *rest] for piece, *rest in vocab]
        pieces = {piece for piece, *_ in vocab}
    else:
        unknown = model.get("unk_token")
        model["vocab"] = {names.get(word, word): token for word, token in vocab.items()}
        if unknown is not None:
            model["unk_token"] = names.get(unknown, unknown)
        pieces = set(vocab)
    if unknown in ends and not _has_all_bytes(model, pieces):
        raise TokenizerError(f"the token {unknown!r} cannot begin or end documents: unknown text becomes it")


def _guard_bpe(
    config: dict[str, Any], names: Mapping[str, str], ends: Collection[str], vocab_size: int
) -> tuple[dict[int, str], dict[str, Any] | None, int | None]:
    """The same for a BPE model: its stand-ins, a tokenizer without them, and the id for lost characters."""
    model, added = config["model"], config["added_tokens"]
    vocab, merges = model["vocab"], model["merges"]
    is_byte_level = any(kind == "ByteLevel" for kind in _kinds(config.get("pre_tokenizer"), config.get("normalizer")))
    inside = [name for name in names if name in vocab]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters = {name for name in inside if len(name.removeprefix(prefix).removesuffix(suffix)) == 1}
    if is_byte_level:
        characters &= _BYTE_LEVEL
    made: set[str] = set()
    if inside:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        names_inside = frozenset(inside)
        made = {piece for left, right in merges if (piece := left + right[len(prefix) :]) in names_inside}
    stood_for = [name for name in inside if name in characters or name in made]

    unknown = model.get("unk_token")
    forms = {(before, after) for before in ("", prefix) for after in ("", suffix)}
    letters = {before + byte + after for byte in _BYTE_LEVEL - _NOT_IN_UTF8 for before, after in forms}
    is_complete = _has_all_bytes(model, vocab) or (is_byte_level and vocab.keys() >= letters)
    loses = not is_complete and (unknown not in vocab or unknown in ends)
    if stood_for or loses:
        # The library gives added tokens that are not in the vocabulary ids by its size, which is about to grow.
        vocab = {**{token["content"]: token["id"] for token in added}, **vocab}
        inside = [name for name in names if name in vocab]
    elif not (inside and model.get("ignore_merges")):
        return {}, None, None
    renamed = {names.get(word, word): token for word, token in vocab.items()}
    if unreachable := {*inside} - {*stood_for}:
        merges = [pair for pair in merges if unreachable.isdisjoint(pair)]
    stand_ins = dict(enumerate(stood_for, start=vocab_size))
    model["vocab"] = renamed | {name: token for token, name in stand_ins.items()}
    model["merges"] = merges
    model["unk_token"] = None if is_complete and unknown in ends else names.get(unknown, unknown)
    without = None
    if stand_ins:
        if prefix or suffix:
            raise TokenizerError(f"text can become the special token {stood_for[0]!r}, with a mark for parts of words")
        for name in sorted(stood_for, key=len):
            _check_characters(name, renamed, model)
        kept = [pair for pair in merges if not {*pair, "".join(pair)} & {*stood_for}]
        bare = {**model, "vocab": renamed, "merges": kept, "ignore_merges": False}
        without = {"version": "1.0", "added_tokens": [], "model": bare}
    if not loses:
        return stand_ins, without, None
    lost_id, lost = vocab_size + len(stand_ins), f"\ufdd0{secrets.token_hex(16)}\ufdd0"
    model["vocab"][lost] = lost_id
    model["unk_token"] = lost
    return stand_ins, without, lost_id


def _check_characters(name: str, vocab: Mapping[str, int], model: Mapping[str, Any]) -> None:
    """Raise unless the text of a special token has tokens without it."""
    for character in name:
        if character not in vocab and not _has_all_bytes(model, vocab):
            raise TokenizerError(
                f"the special token {name!r} cannot be told from text: it is the only token of the character "
                f"{character!r}; choose another token, or give a file in which the character has one of its own"
            )


def _has_all_bytes(model: Mapping[str, Any], vocab: Collection[str]) -> bool:
    """Whether a character without a token becomes its bytes."""
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in vocab for byte in range(256))


def _kinds(*stages: Any) -> Iterator[str]:
    """The types of normalizers or pre-tokenizers, and of those in sequences of them."""
    for stage in stages:
        if isinstance(stage, dict):
            yield stage.get("type", "")
            for inner in ("pretokenizers", "normalizers"):
                yield from _kinds(*stage.get(inner, ()))
