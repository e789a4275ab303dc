"""The bytes of a model in, a tokenizer out; and the check of a tokenizer that the user brings.

In:  a SentencePiece `.model`, a Hugging Face `tokenizer.json` or a Mistral `tekken.json`, known by content.
Out: a `Tokenizer`. BOS and EOS are put around its ids by the caller, with `special_ids`.
Never: a text that is cut or padded; a thread pool (one text at a time: the loader's workers run in parallel).
"""

import contextlib
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import numpy as np

from streampack.errors import TokenizerError
from streampack.records import Tokenizer
from streampack.tokenizers.files import BOM, describe
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer


def load_tokenizer(data: bytes, *, name: str, tokens: Mapping[str, str] = MappingProxyType({})) -> Tokenizer:
    """The tokenizer in `data`, known by its content and never by a suffix.

    Args:
        data: the bytes of the file.
        name: what an error calls it.
        tokens: "bos_token", "eos_token", "pad_token" -> the token's text, where the file is not to say it.

    Raises:
        TokenizerError: it is none of these; the message says what it is. Or a token is not in the vocabulary.
    """
    # A SentencePiece model begins with a line feed and a length, which may be that of "{".
    if data.removeprefix(BOM).lstrip()[:1] == b"{" and (data[:1] != b"\n" or _is_json(data)):
        return HuggingFaceTokenizer(data, name=name, **tokens)
    try:
        tokenizer = SentencePieceTokenizer(data, name=name)
    except TokenizerError as error:
        found = describe(data)
        raise TokenizerError(f"not a SentencePiece model, tokenizer.json or tekken.json: {found}", url=name) from error
    return SentencePieceTokenizer(data, name=name, **tokens) if tokens else tokenizer


def check_tokenizer(tokenizer: object) -> Tokenizer:
    """`tokenizer` itself, if it does all that `streampack.Tokenizer` asks.

    Raises:
        TokenizerError: it does not; the message names every part that is missing or wrong.
    """
    if isinstance(tokenizer, type):
        name = tokenizer.__qualname__
        raise TokenizerError(f"the class {name} is given as the tokenizer, and not one of its objects: write {name}()")
    wrong: list[str] = []
    size = getattr(tokenizer, "vocab_size", None)
    size = int(size) if isinstance(size, np.integer) else size
    for name in ("bos_id", "eos_id", "pad_id", "vocab_size"):
        value = getattr(tokenizer, name, _MISSING)
        if value is None and name != "vocab_size":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            wrong.append(f"{name} must be an int{'' if name == 'vocab_size' else ' or None'} ({_shown(value)})")
        elif name != "vocab_size" and type(size) is int and value >= size:
            wrong.append(f"{name} must be below vocab_size, {size} ({_shown(value)})")
    digest = getattr(tokenizer, "digest", _MISSING)
    if not isinstance(digest, str) or not digest:
        wrong.append(f"digest must be a string that changes with the ids ({_shown(digest)})")
    encode = getattr(tokenizer, "encode", None)
    if not callable(encode):
        wrong.append("encode must be a method (it is missing)")
    elif not wrong:
        ids = np.zeros(0, np.int32)
        with contextlib.suppress(TokenizerError):  # one that has no token for a letter of it is one all the same
            ids = encode("streampack")
        if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"):
            wrong.append(f"encode must return a 1-D integer array, as np.asarray(ids, dtype=np.int32) ({_shown(ids)})")
    if wrong:
        kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
        remedy = "give the path of its model instead, or wrap it in an object that has all of streampack.Tokenizer"
        raise TokenizerError(f"{kind} cannot be used as a tokenizer: {'; '.join(wrong)}; {remedy}")
    return tokenizer  # type: ignore[return-value]  # what was just checked


def special_ids(tokenizer: Tokenizer, *, add_bos: bool, add_eos: bool) -> tuple[int | None, int | None]:
    """The ids (BOS, EOS) to put around each document; None where none is asked for.

    Raises:
        TokenizerError: the tokenizer lacks a token that is asked for.
    """
    for kind, asked, token in (("bos", add_bos, tokenizer.bos_id), ("eos", add_eos, tokenizer.eos_id)):
        if asked and token is None:
            remedy = f"pass add_{kind}=False (on the command line --no-{kind})"
            plain = getattr(tokenizer, "plain", tokenizer)  # under an engine
            if isinstance(plain, HuggingFaceTokenizer | SentencePieceTokenizer):
                names = ", ".join([*plain.control_tokens()][:12]) or "none"
                remedy += f", or name one with {kind}_token= (--{kind}-token); special tokens of the file: {names}"
            raise TokenizerError(f"add_{kind}=True, but the tokenizer has no {kind.upper()} token: {remedy}")
    return tokenizer.bos_id if add_bos else None, tokenizer.eos_id if add_eos else None


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True


_MISSING = object()


def _shown(value: object) -> str:
    if value is _MISSING:
        return "it is missing"
    return "it is a method" if callable(value) else f"it is {type(value).__name__} {value!r:.60}"
