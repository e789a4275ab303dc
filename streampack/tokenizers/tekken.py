"""Mistral's `tekken.json` as a `tokenizer.json`, which gives the same ids.

In:  the file's content: a pattern that cuts text into words, byte strings in the order of their ranks, special tokens.
Out: the content of a tokenizer.json.
Never: an id of the file that is not the same there.

The special tokens have the first ids, the byte strings the ids after them by rank, as many as `default_vocab_size`
leaves room for. tiktoken, which Mistral tokenizes with, looks a word up as a whole (`ignore_merges`); else it joins,
again and again, the two neighbours whose bytes together have the lowest rank, the first of several. The `tokenizers`
library joins only the pairs that the file lists. One pair for each byte string is enough: tiktoken always makes a
string of the pair that it joins last where this string is a word by itself. For while nothing is joined across the ends
of a part of a word, the part is joined in the same order as by itself.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streampack.errors import TokenizerError
from streampack.tokenizers.pieces import BYTE_LEVEL


class _Settings(msgspec.Struct):
    pattern: str
    default_vocab_size: int
    default_num_special_tokens: int


class _Entry(msgspec.Struct):
    rank: int
    token_bytes: str


class _Special(msgspec.Struct):
    rank: int
    token_str: str


class _Tekken(msgspec.Struct):
    config: _Settings
    vocab: list[_Entry]
    special_tokens: list[_Special] | None = None


_UNNAMED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""The special tokens of files that do not list them, as in mistral-common."""


def is_tekken(config: Mapping[str, Any]) -> bool:
    """Whether a JSON object is the content of a tekken.json."""
    return isinstance(config.get("vocab"), list) and isinstance(config.get("config"), dict)


def as_tokenizer_json(tekken: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json that gives the ids of a tekken.json.

    Raises:
        TokenizerError: the file is broken; the message says where.
    """
    try:
        file = msgspec.convert(tekken, _Tekken)
        settings = file.config
        num_special, num_ranks = settings.default_num_special_tokens, len(file.vocab)
        size = settings.default_vocab_size - num_special
        if not 0 <= size <= num_ranks:
            raise ValueError(
                f"default_vocab_size={settings.default_vocab_size} and default_num_special_tokens={num_special} do not "
                f"fit {num_ranks} entries of vocab"
            )
        entries = file.vocab[:size]
        for index, entry in enumerate(entries):
            if entry.rank != index:
                raise ValueError(f"vocab[{index}] has the rank {entry.rank}, and ranks count from 0 without gaps")
        strings = [base64.b64decode(entry.token_bytes, validate=True) for entry in entries]
        names = _special_names(file.special_tokens, num_special)
        ranks = {string: rank for rank, string in enumerate(strings)}
        if len(ranks) < size or b"" in ranks:
            raise ValueError("vocab has an entry without bytes, or two with the same")
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(f"a broken tekken.json: {error}") from error
    words = dict(zip(strings, map(_word, strings), strict=True))
    vocab = {name: token for token, name in enumerate(names)}
    for string, word in words.items():
        if word in vocab:
            raise TokenizerError(
                f"a tekken.json in which text has a token of the special token {word!r}: it cannot be used"
            )
        vocab[word] = num_special + ranks[string]
    split = {"type": "Split", "pattern": {"Regex": settings.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, **plain} for token, name in enumerate(names)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [[words[left], words[right]] for left, right in _merges(strings, ranks)],
        },
    }


def _special_names(given: Sequence[_Special] | None, count: int) -> list[str]:
    """The names of the first `count` ids."""
    names = dict(enumerate(_UNNAMED)) if given is None else {token.rank: token.token_str for token in given}
    if len(names) > count or any(not 0 <= token < count for token in names):
        raise ValueError(f"special_tokens do not fit default_num_special_tokens={count}")
    found = [names.get(token, f"<SPECIAL_{token}>") for token in range(count)]
    if len(set(found)) < count or (given is not None and len(given) != len(names)):
        raise ValueError("special_tokens has a rank or a name twice")
    return found


def _word(string: bytes) -> str:
    return string.decode("latin-1").translate(BYTE_LEVEL)


def _merges(strings: Sequence[bytes], ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each string of two bytes or more the pair that is joined last in it, by rank."""
    never = len(strings)
    found = []
    for string in strings:
        cuts = list(range(len(string) + 1))
        joined = [ranks.get(string[at : at + 2], never) for at in range(len(string) - 1)]  # without each inner cut
        while len(joined) > 1:
            lowest = min(joined)
            if lowest == never:
                break  # only a word as a whole is this string
            at = joined.index(lowest)
            del cuts[at + 1], joined[at]
            if at:
                joined[at - 1] = ranks.get(string[cuts[at - 1] : cuts[at + 1]], never)
            if at < len(joined):
                joined[at] = ranks.get(string[cuts[at] : cuts[at + 2]], never)
        if len(joined) == 1:
            found.append((string[: cuts[1]], string[cuts[1] :]))
    return found
