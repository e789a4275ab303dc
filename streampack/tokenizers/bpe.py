"""A SentencePiece BPE model taken apart, to get its ids faster: part by part, or from a library that ranks pairs.

In:  the bytes of a model. Out: whether and where a text can be cut (`can_be_cut`, `cut`); why the ids of that library,
     gigatoken, may differ (`obstacle`); the model as it reads it (`tokenizer_json`); and texts to compare on
     (`edge_texts`, `tied_texts`). Nothing is tokenized here.

Why the ids are equal where there is no obstacle. SentencePiece joins, again and again, the two neighbours whose
joined text is the piece of the best score, the leftmost of equal scores. A ranking library joins the pair (left, right)
of the best rank, the leftmost of equal ranks. With ranks in the order of distinct scores the two can differ only where
one piece can be made of two different pairs at a time. That never happens: until a piece is made, no join has crossed
its ends, and of the joins inside the best came first, so they are the joins of its text taken alone; and before the
last of those, two symbols are left, always the same two.

Cutting a text between two characters that no piece holds side by side changes nothing: what a join makes is a piece,
so no join crosses the cut, and the joins on one side do not depend on those on the other. A library with a cache looks
the parts up; SentencePiece itself takes short parts a fifth to a third faster than long texts, because its list of
joins stays in the processor's caches.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6
"""Types of pieces. CONTROL (3) is never made from text."""

_SPACE = "\u2581"
_BPE = 2
_MODEL_TYPES = {1: "unigram", _BPE: "BPE", 3: "word", 4: "character"}
_MAX_USER_DEFINED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The fields of a SentencePiece `ModelProto` that are used here."""

    pieces: tuple[tuple[str, float, int], ...]
    """Text, score and type, by id."""
    model_type: int
    byte_fallback: bool
    space_is_suffix: bool
    add_dummy_prefix: bool
    escape_spaces: bool
    only_escapes_spaces: bool
    """No map of characters, and runs of spaces are kept: normalization that the library does by itself."""

    @property
    def unknown_id(self) -> int:
        """The id of a run of characters without pieces, where there is no byte fallback; SentencePiece demands one."""
        return next(token for token, (_, _, kind) in enumerate(self.pieces) if kind == UNKNOWN)

    def texts(self, kind: int) -> list[str]:
        return [text for text, _, of_kind in self.pieces if of_kind == kind]

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the pieces that joins make, and of the characters that joins start from."""
        return {text: score for text, score, kind in self.pieces if kind == NORMAL}

    @property
    def joined(self) -> dict[str, float]:
        """The scores of the pieces that joins make."""
        return {text: score for text, score in self.scores.items() if len(text) > 1}


def read_model(data: bytes) -> Model:
    """The parts of a model that SentencePiece has loaded; fields that are not set have the protocol's defaults.

    Raises:
        ValueError: the bytes hold groups, or pieces that are not UTF-8, which no model has.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[tuple[int, int], Any] = {}
    normalizer: dict[tuple[int, int], Any] = {}
    for field, value in _fields(data):
        if field == (1, _BYTES):
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get((2, _FLOAT), bytes(4)))[0]
            pieces.append((piece.get((1, _BYTES), b"").decode(), score, piece.get((3, _INT), NORMAL)))
        elif field == (2, _BYTES):
            trainer |= dict(_fields(value))
        elif field == (3, _BYTES):
            normalizer |= dict(_fields(value))
    return Model(
        pieces=tuple(pieces),
        model_type=trainer.get((3, _INT), 1),
        byte_fallback=bool(trainer.get((35, _INT), 0)) and sum(kind == BYTE for _, _, kind in pieces) == 256,
        space_is_suffix=bool(trainer.get((24, _INT), 0)),
        add_dummy_prefix=bool(normalizer.get((3, _INT), 1)),
        escape_spaces=bool(normalizer.get((5, _INT), 1)),
        only_escapes_spaces=not normalizer.get((2, _BYTES)) and not normalizer.get((4, _INT), 1),
    )


_INT, _BYTES, _FLOAT = 0, 2, 5
_SIZES = {1: 8, _BYTES: None, _FLOAT: 4}


def _fields(message: bytes) -> Iterator[tuple[tuple[int, int], Any]]:
    """The fields of a protobuf message: (number, wire type), and an int, or the bytes of anything else.

    Protobuf ignores a field whose wire type is not the expected one, so the caller must, too.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        field, wire = divmod(varint(), 8)
        if wire == _INT:
            yield (field, wire), varint()
        else:
            if wire not in _SIZES:
                raise ValueError(f"a group in a protobuf message, at byte {at}")
            size = _SIZES[wire] or varint()
            yield (field, wire), message[at : at + size]
            at += size


def can_be_cut(model: Model) -> bool:
    """Whether the ids of a text are those of the parts that `cut` makes of it, one after the other."""
    return (
        model.model_type == _BPE
        and model.only_escapes_spaces
        and model.escape_spaces
        and not model.space_is_suffix
        and (model.byte_fallback or _SPACE in model.scores)  # else unknown runs could be one across a cut
        and not model.texts(UNUSED)  # they are taken apart as they were joined last, anywhere in the text
        and not any(_SPACE in text.lstrip(_SPACE) or " " in text for text, _, _ in model.pieces)
    )


def cut(text: str, size: int, *, space_is_implied: bool) -> list[str]:
    """`text` in parts of at least `size` characters, all but the first from a space on that follows no other space.

    Args:
        text: anything that is for a model of which `can_be_cut` is true.
        size: the fewest characters, at least 1; a part is longer where no such space comes.
        space_is_implied: the model puts a space before each text (`Model.add_dummy_prefix`), so a part has no need of
            its own one.
    """
    parts, begin = [], 0
    while found := _CUT.search(text, begin + size):
        parts.append(text[begin : found.start()])
        begin = found.end() if space_is_implied else found.start()
    return [*parts, text[begin:]]


# The mark of a space is a space to the model where the text holds it, too. No part is empty: it would have no prefix.
_CUT = re.compile(rf"(?<![ {_SPACE}]) (?!\Z)")


def obstacle(model: Model) -> str | None:
    """Why the other library's ids may differ for this model; None where by its rules they do not."""
    if model.model_type != _BPE:
        return f"it is a {_MODEL_TYPES.get(model.model_type, 'strange')} model, not a BPE model"
    if model.space_is_suffix or not model.escape_spaces:
        return "it marks spaces in an unusual way"
    if model.texts(UNUSED):
        return "it has unused pieces, which are taken apart again"
    reserved = model.texts(USER_DEFINED)
    ordinary = [text for text in reserved if len(text) < 3 or re.search(rf"\s|{_SPACE}", text)]
    if ordinary or len(reserved) > _MAX_USER_DEFINED:
        return f"its {len(reserved)} user-defined pieces are in ordinary text, as {(ordinary or reserved)[0]!r}"
    scores, joined = model.scores, model.joined
    for text in joined:
        if any(character not in scores for character in text) or re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            return f"the piece {text!r} is not made of characters that are pieces"
    tied = _tied(joined)
    if tied:
        character, lowest = tied[0][0], min(joined.values())
        runs = {text for text in joined if character * 2 in text}
        if {*tied} != runs or any({*text} != {character} or joined[text] > lowest for text in runs):
            return f"pieces have equal scores, as {tied[0]!r} and {tied[1]!r}"
    return None


def _tied(joined: dict[str, float]) -> list[str]:
    """The pieces whose score another piece has too.

    Llama's and Mistral's runs of spaces all have one score, below that of every other piece, and no other piece holds
    two spaces side by side. That is no obstacle: each run is joined by itself when all else is done, the left runs
    first, as the pair with the longest left side is ranked first; and `tied_texts` has runs of every length.
    """
    count = Counter(joined.values())
    return [text for text, score in joined.items() if count[score] > 1]


def tokenizer_json(model: Model) -> bytes:
    """The model as a `tokenizer.json` of normal pieces, bytes, and every pair that makes a piece, best score first.

    Control tokens and the like are left out: no text can become one. Without byte fallback, ids above the model's own
    stand for the bytes of a character without a piece.
    """
    scores = model.scores
    vocabulary = {text: token for token, (text, _, kind) in enumerate(model.pieces) if kind in (NORMAL, BYTE)}
    if not model.byte_fallback:
        vocabulary |= {f"<0x{byte:02X}>": len(model.pieces) + byte for byte in range(256)}
    merges = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1])))  # see `_tied` for the second
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if model.add_dummy_prefix else []
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    described = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, escape]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [pair for _, *pair in merges],
        },
    }
    return json.dumps(described, ensure_ascii=False).encode()


_EDGE_TEXTS = """
   leading, trailing   \ta  b   c\n \n\r\n|\ttabs\t\t|a\x00b|\ufeffBOM|no\u00a0break, thin\u2009, zero\u200bwidth|
▁▁own mark▁| ▁ ▁a|<s>|</s>|<unk>|<pad>|a <s> b</s>c<unk>|<0x41><0x0A>|[INST] x [/INST]|<\u200b|endoftext|>|
e\u0301 \u00e9|ﬁ ２ ①|👩‍👩‍👧‍👦 🇩🇪 👍🏽|日本語とहिन्दी|שלום עולם مرحبا|\U0010ffff\ufffe\ufdd0|\u202eabc\u202c|
banana ananas papaya|
"""


def edge_texts(model: Model) -> list[str]:
    """Texts on which libraries are known to differ, and texts made of the model's own pieces."""
    reserved = [text for text, _, kind in model.pieces if kind != NORMAL][:1000]
    texts = ["", " ", "  ", "\n", _EDGE_TEXTS, *_EDGE_TEXTS.split("|"), "a" * 3000, "ab" * 1000, "=-" * 9 + "=" * 500]
    texts += [*reserved, *(f"x{text} y" for text in reserved), " ".join(reserved), ".,;:!?\"')(" * 20]
    pieces = list(model.scores)
    return [*texts, "".join(pieces[:: max(1, len(pieces) // 2000)])]


def tied_texts(model: Model) -> list[str]:
    """Texts on which a ranking library might part where pieces have equal scores."""
    tied = _tied(model.joined)
    longest = 4 * max(map(len, tied), default=0) + 2
    return [f"x{character * count}y" for character in {text[0] for text in tied} for count in range(longest)]
