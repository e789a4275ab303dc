"""A byte-level BPE of a tokenizer.json taken apart, to get its ids from another library.

In:  the file's content as the `tokenizers` library has it, with the special tokens out of reach (`guarding`).
Out: why the ids of that other library, gigatoken, may differ (`obstacle`); the content as it reads it (`reduced`);
     texts to compare on (`edge_texts`), and a small model that shows each cut of a text into words (`revealing`).
     Nothing is tokenized here.

Byte-level BPE joins the pair of the lowest rank, the leftmost of equal ones, in each word by itself, so two libraries
that cut text into the same words and know the same ranks give the same ids. gigatoken knows the pattern of a word by
its exact text and refuses others; whether it means the same by it is compared, as is all that is allowed here. It
does not normalize: a text that NFC changes goes to the plain tokenizer (`characters`).
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streampack.tokenizers.pieces import BYTE_LEVEL

_ISOLATED = {("Isolated", False), ("Removed", True)}
"""(behavior, invert) of a Split that keeps each match, of a pattern that matches everywhere, as a word."""
_FLAGS = ("single_word", "lstrip", "rstrip")


def obstacle(config: Mapping[str, Any]) -> str | None:
    """Why the other library may read this file in another way; None where nothing of it is known to differ."""
    model = config["model"]
    level = _byte_level(config.get("pre_tokenizer"))
    if "merges" not in model or level is None:
        return "it is not a byte-level BPE with one of the usual pre-tokenizers"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("byte_fallback"):
        return "its model marks parts of words, or has tokens for single bytes"
    if not model["vocab"].keys() >= set(BYTE_LEVEL.values()):
        return "its vocabulary lacks a byte"
    if any(kind != "NFC" for kind in _normalizers(config.get("normalizer"))):
        return "it normalizes text in another way than NFC"
    return _obstacle_of_tokens(config, has_prefix=bool(level.get("add_prefix_space")))


def _obstacle_of_tokens(config: Mapping[str, Any], *, has_prefix: bool) -> str | None:
    """The same for the added tokens that text can become: those that are not special."""
    special = [token["content"] for token in config["added_tokens"] if token["special"]]
    ordinary = [token for token in config["added_tokens"] if not token["special"]]
    names = [token["content"] for token in ordinary]
    for token in ordinary:
        if any(token[flag] for flag in _FLAGS):
            return f"the added token {token['content']!r} looks at the text around it"
        if config.get("normalizer") and not token["content"].isascii():
            return f"the added token {token['content']!r} is not ASCII, and the text is normalized"
    if len({token["normalized"] for token in ordinary}) > 1:
        return "some of its added tokens are looked for before normalization and some after it"
    if names and has_prefix:
        return "it has added tokens, and puts a space before each text between them"
    ends = {name[at:] for name in special for at in range(len(name))}
    begins = {name[: at + 1] for name in special for at in range(len(name))}
    for name in names:
        parts = [name[at:] for at in range(len(name))], [name[: at + 1] for at in range(len(name))]
        if not begins.isdisjoint(parts[0]) or not ends.isdisjoint(parts[1]) or any(name in each for each in special):
            return f"the text of the added token {name!r} and of a special token can overlap"
    return None


def _byte_level(stage: Any) -> Mapping[str, Any] | None:
    """The step that makes characters of bytes, of a pre-tokenizer that both libraries have; else None."""
    if not isinstance(stage, dict):
        return None
    if stage["type"] == "ByteLevel":
        return stage if stage.get("use_regex", True) else None
    *splits, last = stage.get("pretokenizers") or [{"type": ""}]
    is_usual = (
        splits
        and all(each["type"] == "Split" and (each["behavior"], each["invert"]) in _ISOLATED for each in splits)
        and last["type"] == "ByteLevel"
        and not last.get("use_regex", True)
        and not last.get("add_prefix_space")
    )
    return last if is_usual else None


def _normalizers(stage: Any) -> Iterator[str]:
    if isinstance(stage, dict):
        if stage["type"] == "Sequence":
            for each in stage["normalizers"]:
                yield from _normalizers(each)
        else:
            yield stage["type"]


def reduced(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content for gigatoken: without a normalizer, and without tokens that no text becomes (ids then have gaps).

    A word of the vocabulary with a character that stands for no byte is such a token. gigatoken takes it as text.
    """
    special = {token["content"] for token in config["added_tokens"] if token["special"]}
    model = config["model"]
    raw = _raw_words(model["vocab"])
    left_out = special | raw
    return {
        "version": "1.0",
        "added_tokens": [token for token in config["added_tokens"] if not token["special"]],
        "normalizer": None,
        "pre_tokenizer": config["pre_tokenizer"],
        "model": {
            "type": "BPE",
            "ignore_merges": bool(model.get("ignore_merges")),
            "vocab": {word: token for word, token in model["vocab"].items() if word not in left_out},
            "merges": [pair for pair in model["merges"] if left_out.isdisjoint(pair)] if raw else model["merges"],
        },
    }


_NO_BYTE = re.compile(f"[^{re.escape(''.join(BYTE_LEVEL.values()))}]")


def _raw_words(vocab: Iterable[str]) -> set[str]:
    """The words with a character that stands for no byte."""
    return set(filter(_NO_BYTE.search, vocab))


_PROBES = "aD1! '\n/s"
"""Characters of each class that patterns tell apart, to stand beside others."""


def revealing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file with a small model that joins each pair of neighbours, so that every cut of a text shows in the ids.

    Joined are two of `_PROBES`, and one of them with the first or the last byte of any character.
    """
    probes = [BYTE_LEVEL[ord(character)] for character in _PROBES]
    first, last = ([BYTE_LEVEL[byte] for byte in some] for some in (range(0xC2, 0xF5), range(0x80, 0xC0)))
    pairs = [(left, right) for left in probes for right in (*probes, *first)]
    pairs += [(left, right) for left in last for right in (*probes, *first)]
    words = [*BYTE_LEVEL.values(), *(left + right for left, right in pairs)]
    vocab = {word: token for token, word in enumerate(words)}
    model = {"type": "BPE", "ignore_merges": False, "vocab": vocab, "merges": [list(pair) for pair in pairs]}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": config["pre_tokenizer"],
        "model": model,
    }


_EDGE_TEXTS = """
I'm you're he'd we've they'll it's 'twas|I'M YOU'RE HE'D WE'VE THEY'LL IT'S|’s 's' ''s 'ſ 'st x'sa|don't'don't|
1 12 123 1234 12345678 1,234.5 1a2 a1|١٢٣٤ １２３ ½² Ⅷ x86_64 0x1F|   leading, trailing   \ta  b   c\n \n\r\n|
\r|\r\r\n\n \r|\n\n\n a\n  b\n\tc\r\n\r\n  |tabs\t\t|a \n|\n a|  \n  |a\x00b\x1c\x1d\x1e\x1f|\u202eabc\u202c|
\u00a0 \u00a0a\u2009b\u3000c\u200bd\u2028e\u0085f\u180eg\ufeff|def f(x):\n    return x**2  # 'x'\n\n\n|/usr/bin//a\\b|
!!! ... ?!?? --- === /// +=/*\n*/|CamelCaseWORDSAndmore XMLHttpRequest ǅungla|İıŞẞ ſt K Ω|z\u0307\u0323 q\u0323\u0307|
café e\u0301 \u0301a a\u0301\u0302 ﬁ ① Å\u212b \u1e9b\u0323|가\u1100\u1161\u11a8|1\ufe0f\u20e3|
👩\u200d👩\u200d👧 🇩🇪🇫 👍🏽 ❤\ufe0f|
日本語とहिन्दी 한국어|שָׁלוֹם مرحبا ไทย|\U0010ffff\ufffe\ufdd0\ufffd|<s>|</s>|[INST] x [/INST]|<\u200b|im_start|>user\n|
"""
EDGE_TEXTS = ("", " ", "  ", "\n", "a", _EDGE_TEXTS, *_EDGE_TEXTS.split("|"))
"""On which pre-tokenizers are known to differ."""


def edge_texts(config: Mapping[str, Any]) -> list[str]:
    """Those above, long words, and texts made of the file's own tokens; in the form NFC where text is normalized."""
    texts = [*EDGE_TEXTS, "a" * 3000, "ab" * 1000, " " * 300 + "x"]
    texts += ["=-" * 9 + "=" * 500, "1" * 100, "\n" * 50, "e\u0301" * 60, "日" * 300, ".,;:!?\"')(" * 20]
    names = [token["content"] for token in config["added_tokens"]][:1000]
    texts += [*names[:50], *(f"x{name} y{name}{name}" for name in names), " ".join(names)]
    raw = sorted(_raw_words(config["model"]["vocab"]))[:1000]
    texts += [*raw, *(f"x{word} y {word}{word}" for word in raw)]
    bytes_of = {character: byte for byte, character in BYTE_LEVEL.items()}
    words = [*config["model"]["vocab"]]
    for some in (words[:: max(1, len(words) // 2000)], words[-300:]):
        parts = [bytes(map(bytes_of.__getitem__, word)) for word in some if bytes_of.keys() >= set(word)]
        for at in range(0, len(parts), 50):  # a character that is not settled takes out of the comparison only these
            few = parts[at : at + 50]
            texts += [b"".join(few).decode(errors="ignore"), b" ".join(few).decode(errors="replace")]
    return [unicodedata.normalize("NFC", text) for text in texts] if config.get("normalizer") else texts
