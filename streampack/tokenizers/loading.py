"""Text in, token ids out: the tokenizers that streampack brings, and the check of one that the user brings.

In:  the bytes of a model (a SentencePiece `.model` or a Hugging Face `tokenizer.json`, known by content), then texts.
Out: int32 ids of each text alone; BOS and EOS are joined by the caller, with `special_ids`.

Never true: that a document's text `<s>` becomes a control id (it gives ordinary pieces), that a text is cut or padded,
that a library's live handle crosses a process (a pickle holds the model's bytes; the worker loads them again), or that
a thread pool is started (one text at a time; parallelism is the loader's workers).

    >>> ByteTokenizer().encode("hi").tolist()
    [107, 108]
"""

import hashlib
import os

import numpy as np
import sentencepiece

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokenizer, Tokens
from streampack.tokenizers.files import check_unicode, describe, read_model_file
from streampack.tokenizers.huggingface import HuggingFaceTokenizer


class SentencePieceTokenizer:
    """A SentencePiece model: the ids are exactly those of `SentencePieceProcessor.encode(text)`.

    Args:
        model: the model's bytes, or a local path of it.
        name: what error messages call the model; by default the path.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], *, name: str | None = None) -> None:
        self._model, name = read_model_file(model, name)
        try:
            # An empty model loads, and then writes to stderr at each use.
            if not self._model:
                raise ValueError("no bytes")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, ValueError, OSError) as error:
            raise TokenizerError(f"not a SentencePiece model: {describe(self._model)} ({error})", url=name) from error
        self.digest = f"sentencepiece:{hashlib.sha256(self._model).hexdigest()}"
        self.vocab_size = int(self._processor.vocab_size())
        self.bos_id = _id_or_none(self._processor.bos_id())
        self.eos_id = _id_or_none(self._processor.eos_id())
        self.pad_id = _id_or_none(self._processor.pad_id())
        try:
            self._numpy = isinstance(self._processor.encode("", out_type="numpy"), np.ndarray)
        except (RuntimeError, ValueError, TypeError):  # sentencepiece before 0.2.3 knows lists only
            self._numpy = False

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n] (read-only where the library hands out its own buffer)."""
        try:
            if self._numpy:
                ids: Tokens = self._processor.encode(text, out_type="numpy")
                return ids
            return np.array(self._processor.encode(text), dtype=np.int32)
        except Exception:
            check_unicode(text)
            raise

    def control_tokens(self) -> dict[str, ControlToken]:
        """The model's control pieces, by name."""
        processor = self._processor
        control = [token for token in range(self.vocab_size) if processor.is_control(token)]
        return {str(processor.id_to_piece(token)): ControlToken(token) for token in control}

    @property
    def model(self) -> bytes:
        """The model's bytes."""
        return self._model

    def normalize(self, text: str) -> str:
        """`text` as the model's pieces are matched against it, with U+2581 for spaces."""
        return str(self._processor.normalize(text))

    def id_to_piece(self, token: int) -> str:
        """The vocabulary's piece of an id, with its U+2581 for a space."""
        return str(self._processor.id_to_piece(token))

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return type(self), (self._model,)

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, digest={self.digest!r})"


class ByteTokenizer:
    """UTF-8 bytes as tokens (id = byte + 3), for tests and demonstrations: no model, every text, 259 ids."""

    pad_id, bos_id, eos_id = 0, 1, 2
    vocab_size = 259
    digest = "bytes:1"

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        check_unicode(text)
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + np.int32(3)

    def id_to_piece(self, token: int) -> str:
        """What stands for an id, bytes as SentencePiece writes them."""
        return ("<pad>", "<s>", "</s>")[token] if token < 3 else f"<0x{token - 3:02X}>"


def load_tokenizer(data: bytes, *, name: str) -> Tokenizer:
    """The tokenizer in `data`, known by its content and never by a suffix; `name` is what an error calls the file.

    Raises:
        TokenizerError: it is neither a SentencePiece model nor a tokenizer.json; the message says what it is.
    """
    if data.lstrip()[:1] == b"{":
        # A SentencePiece model begins with a line feed and a length, which may be that of "{": then JSON fails first.
        try:
            return HuggingFaceTokenizer(data, name=name)
        except TokenizerError:
            if data[:1] != b"\n":
                raise
    try:
        return SentencePieceTokenizer(data, name=name)
    except TokenizerError as error:
        found = describe(data)
        raise TokenizerError(f"neither a SentencePiece model nor a tokenizer.json: {found}", url=name) from error


def check_tokenizer(tokenizer: object) -> Tokenizer:
    """`tokenizer` itself, if it does all that `streampack.Tokenizer` asks.

    Raises:
        TokenizerError: it does not; the message names every part that is missing or wrong.
    """
    wrong = []
    for name in ("bos_id", "eos_id", "pad_id", "vocab_size"):
        value = getattr(tokenizer, name, _MISSING)
        if value is None and name != "vocab_size":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            wrong.append(f"{name} must be an int{'' if name == 'vocab_size' else ' or None'} ({_shown(value)})")
    digest = getattr(tokenizer, "digest", _MISSING)
    if not isinstance(digest, str) or not digest:
        wrong.append(f"digest must be a string that changes with the ids ({_shown(digest)})")
    encode = getattr(tokenizer, "encode", None)
    if not callable(encode):
        wrong.append("encode must be a method (it is missing)")
    elif not wrong:
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
        TokenizerError: asked for one that the tokenizer does not have.
    """
    for kind, asked, token in (("bos", add_bos, tokenizer.bos_id), ("eos", add_eos, tokenizer.eos_id)):
        if asked and token is None:
            remedy = f"pass add_{kind}=False"
            if isinstance(tokenizer, HuggingFaceTokenizer):
                names = ", ".join(tokenizer.special_tokens[:12]) or "none"
                remedy += f", or HuggingFaceTokenizer(path, {kind}_token=...); special tokens in the file: {names}"
            raise TokenizerError(f"add_{kind}=True, but {tokenizer.digest} has no {kind.upper()} token: {remedy}")
    return tokenizer.bos_id if add_bos else None, tokenizer.eos_id if add_eos else None


def _id_or_none(token: int) -> int | None:
    return int(token) if token >= 0 else None


_MISSING = object()


def _shown(value: object) -> str:
    if value is _MISSING:
        return "it is missing"
    return "it is a method" if callable(value) else f"it is {type(value).__name__} {value!r:.60}"
