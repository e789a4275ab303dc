"""Text in, token ids out: the tokenizers that streampack brings, and the check of one that the user brings.

In:  the bytes of a model (a SentencePiece `.model` or a Hugging Face `tokenizer.json`, known by content), then texts.
Out: int32 ids of each text alone; BOS and EOS are joined by the caller, with `special_ids`.

Never true: that a document's text `<s>` becomes a control id (it gives ordinary pieces), that a text is cut or padded,
that a library's live handle crosses a process (a pickle holds the model's bytes; the worker loads them again), or that
a thread pool is started (one text at a time; parallelism is the loader's workers).

    >>> ByteTokenizer().encode("hi").tolist()
    [107, 108]
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sentencepiece
from numpy.typing import NDArray

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokenizer, Tokens

# Names that mean one thing in every published tokenizer.json. `<|endoftext|>` begins documents too in GPT-2, but not
# in the files that came after it, so it is taken for an EOS only.
_KNOWN_NAMES = {
    "bos_token": ("<s>", "<bos>", "<BOS>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"),
    "eos_token": ("</s>", "<eos>", "<EOS>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"),
    "pad_token": ("<pad>", "<PAD>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
}


class SentencePieceTokenizer:
    """A SentencePiece model: the ids are exactly those of `SentencePieceProcessor.encode(text)`.

    Args:
        model: the model's bytes, or a local path of it.
        name: what error messages call the model; by default the path.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], *, name: str | None = None) -> None:
        self._model, name = _read(model, name)
        try:
            # An empty model loads, and then writes to stderr at each use.
            if not self._model:
                raise ValueError("no bytes")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, ValueError, OSError) as error:
            raise TokenizerError(f"not a SentencePiece model: {_describe(self._model)} ({error})", url=name) from error
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
            _check_unicode(text)
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


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read by the Rust library `tokenizers` (`pip install streampack[hf]`).

    The file does not say which tokens begin and end a document. They are taken from its post-processor, else from the
    added tokens by well-known names, where exactly one fits; a name given here wins. Truncation and padding that are
    set in the file are switched off.

    Args:
        tokenizer_json: the file's bytes, or a local path of it.
        bos_token: the token (not its id) that begins a document.
        eos_token: the token that ends a document.
        pad_token: the token that fills a pack.
        name: what error messages call the file; by default the path.
    """

    def __init__(
        self,
        tokenizer_json: bytes | str | os.PathLike[str],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        name: str | None = None,
    ) -> None:
        data, name = _read(tokenizer_json, name)
        names = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        self._source = functools.partial(type(self), **names), (data,)  # type: ignore[arg-type]
        try:
            config = msgspec.json.decode(data)
            if not (isinstance(config, dict) and isinstance(config.get("model"), dict)):
                raise ValueError("no object under the key 'model'")
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"not a tokenizer.json: {_describe(data)}", url=name) from error
        try:
            import tokenizers
        except ImportError as error:
            remedy = "a tokenizer.json needs the package `tokenizers`: pip install streampack[hf]"
            raise TokenizerError(remedy, url=name) from error

        try:
            ids = _vocabulary(config)
            chosen = _special_tokens(config) | {key: token for key, token in names.items() if token is not None}
            for key, token in chosen.items():
                if token not in ids:
                    raise TokenizerError(f"{key}={token!r} is not in the vocabulary of the file", url=name)
            self.bos_id, self.eos_id, self.pad_id = (ids.get(chosen.get(key, "")) for key in names)
            self.vocab_size = max(ids.values()) + 1
            self._control = {
                token["content"]: ControlToken(token["id"], bool(token.get("lstrip")), bool(token.get("rstrip")))
                for token in config.get("added_tokens", [])
                if token.get("special") or token["content"] in chosen.values()
            }
            config |= {"truncation": None, "padding": None, "post_processor": None}
            # The ids of BOS and EOS stand in the stream as well, so the digest names them too.
            canonical = msgspec.json.encode([config, self.bos_id, self.eos_id, self.pad_id], order="sorted")
            self.digest = f"huggingface:{hashlib.sha256(canonical).hexdigest()}"
            self.special_tokens = _guard_special_tokens(config, chosen.values())
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(msgspec.json.encode(config))
        except TokenizerError:
            raise
        except Exception as error:  # the library raises bare Exception; a broken file breaks the reading above anyhow
            message = f"a tokenizer.json that cannot be used ({type(error).__name__}: {error})"
            raise TokenizerError(message, url=name) from error
        self._tokenizer.encode_special_tokens = True  # the text of a special token is text

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        except Exception:
            _check_unicode(text)
            raise

    def encode_with_offsets(self, text: str) -> tuple[Tokens, NDArray[np.int64]]:
        """The ids of `text`, int32 [n], and where each begins and ends in it, int64 [n, 2] in characters."""
        try:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:
            _check_unicode(text)
            raise
        return np.array(encoded.ids, dtype=np.int32), np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)

    def control_tokens(self) -> dict[str, ControlToken]:
        """The special tokens of the file, by name."""
        return dict(self._control)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._source

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer(vocab_size={self.vocab_size}, digest={self.digest!r})"


class ByteTokenizer:
    """UTF-8 bytes as tokens (id = byte + 3), for tests and demonstrations: no model, every text, 259 ids."""

    pad_id, bos_id, eos_id = 0, 1, 2
    vocab_size = 259
    digest = "bytes:1"

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        _check_unicode(text)
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
        found = _describe(data)
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


def _read(source: bytes | str | os.PathLike[str], name: str | None) -> tuple[bytes, str | None]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), name
    path = os.fspath(source)
    if "://" in path:
        raise TokenizerError("only local paths are read here: pass the bytes of a remote model", url=path)
    try:
        return Path(path).read_bytes(), name or path
    except OSError as error:
        raise TokenizerError(f"the tokenizer cannot be read ({error.strerror})", url=path) from error


def _id_or_none(token: int) -> int | None:
    return int(token) if token >= 0 else None


_MISSING = object()


def _shown(value: object) -> str:
    if value is _MISSING:
        return "it is missing"
    return "it is a method" if callable(value) else f"it is {type(value).__name__} {value!r:.60}"


def _check_unicode(text: str) -> None:
    """Says clearly what the libraries say badly: a string that UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"character {error.start} ({text[error.start]!r}) is half of a surrogate pair"
        raise TokenizerError(f"the text is not Unicode: {found}, which UTF-8 cannot hold") from error


def _vocabulary(config: dict[str, Any]) -> dict[str, int]:
    vocab = config["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: index for index, entry in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in config.get("added_tokens", [])}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Which token begins and ends a document and which one pads, where the file leaves no doubt."""
    added = [token["content"] for token in config.get("added_tokens", [])]
    found = {key: [name for name in names if name in added] for key, names in _KNOWN_NAMES.items()}
    if config.get("padding") and config["padding"]["pad_token"] in added:
        found["pad_token"] = [config["padding"]["pad_token"]]
    processor = config.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            template: list[str] = [part.get("SpecialToken", {"id": ""})["id"] for part in step["single"]]
            text = template.index("")
            found["bos_token"] = template[:text] or found["bos_token"]
            found["eos_token"] = template[text + 1 :] or found["eos_token"]
        elif step.get("type") in ("RobertaProcessing", "BertProcessing"):
            found["bos_token"], found["eos_token"] = [step["cls"][0]], [step["sep"][0]]
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def _guard_special_tokens(config: dict[str, Any], chosen: Iterable[str]) -> list[str]:
    """Makes `config` such that no text reaches a special token, and returns the names of these.

    `encode_special_tokens` stops the search for their text. Models that look whole pieces up would still find them in
    their vocabulary (in Unigram `</s>` even has the best score), so there they get names that no text holds; ids stay.
    """
    special = [t for t in config.get("added_tokens", []) if t.get("special") or t["content"] in chosen]
    names = [token["content"] for token in special]
    model = config["model"]
    vocab = model.get("vocab", {})
    renamed = {name: f"\ufdd0{hashlib.sha256(name.encode()).hexdigest()}\ufdd0" for name in names}
    if isinstance(vocab, list):
        model["vocab"] = [[renamed.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]
    elif "merges" not in model:
        renamed.pop(model.get("unk_token", ""), None)
        model["vocab"] = {renamed.get(name, name): token for name, token in vocab.items()}
    else:
        renamed = {}  # BPE: merges alone make pieces
    for token in special:
        token.update(special=True, content=renamed.get(token["content"], token["content"]))
    return names


def _describe(data: bytes) -> str:
    """What the bytes are, for a message to someone who took them for a model."""
    head = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:4096]
    for pattern, found in _LOOKS_LIKE:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return found
    if head[:1] != b"{":
        return f"{len(data):,} bytes that begin with {data[:24]!r}"
    try:
        config = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        return f"broken JSON ({error})"
    if "tokenizer_class" in config or "added_tokens_decoder" in config:
        return "a tokenizer_config.json: give the tokenizer.json or tokenizer.model beside it"
    if "special_tokens" in config and "vocab" in config:
        return f"Mistral's tekken.json: {_BRING_YOUR_OWN}"
    if config and all(isinstance(value, int) for value in config.values()):
        return "a vocab.json: give the tokenizer.json beside it"
    return f"a JSON object with the keys {', '.join(map(repr, list(config)[:8])) or '(none)'}"


_BRING_YOUR_OWN = "not read here: give an object that has all of streampack.Tokenizer"
_LOOKS_LIKE = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs", "a Git LFS pointer and not the file it points to: fetch it with `git lfs pull`"),
    (rb"<(!doctype|html|\?xml|head|body)", "a web page: a download that gave an error or log-in page"),
    (rb"[a-z0-9+/]+=* \d+\r?\n", f"a tiktoken vocabulary: {_BRING_YOUR_OWN}"),
    (rb"#version", "a merges.txt: give the tokenizer.json beside it"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "a compressed file: decompress it first"),
    (rb"PK\x03\x04", "a zip archive: unpack it first"),
    (rb"\[", "a JSON list"),
)
