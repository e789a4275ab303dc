"""The files of tokenizers: they are read, and other files are recognised, so that an error can say what they are."""

import os
import re
from pathlib import Path

import msgspec

from streampack.errors import TokenizerError

BOM = b"\xef\xbb\xbf"
"""A byte order mark, which some editors put before JSON."""


def read_model_file(source: bytes | str | os.PathLike[str], name: str | None) -> tuple[bytes, str | None]:
    """A file's bytes without a byte order mark, given as they are or by its local path; what error messages call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source).removeprefix(BOM), name
    path = os.fspath(source)
    if "://" in path:
        raise TokenizerError("only local paths are read here: pass the bytes of a remote model", url=path)
    if obstacle := obstacle_of_path(path):
        raise TokenizerError(obstacle)
    try:
        return Path(path).read_bytes().removeprefix(BOM), name or path
    except OSError as error:
        raise TokenizerError(f"the tokenizer cannot be read ({error.strerror})", url=path) from error


NO_FILE = (
    "give the path or URL of a SentencePiece model, a tokenizer.json or a tekken.json; names of the Hugging Face hub "
    "are not looked up, so download the file first"
)
"""What to do where nothing is at a path."""
_MODEL_FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "*.model")


def obstacle_of_path(path: str) -> str | None:
    """Why a text cannot be the path or URL of a tokenizer's file, and what to give; None where it may be one."""
    if not path or "\n" in path or "\0" in path or path.lstrip()[:1] == "{":
        return f"tokenizer={path!r:.60} is not a path: {NO_FILE}"
    folder = Path(path)
    try:
        if "://" in path or not folder.is_dir():
            return None
        found = [file for pattern in _MODEL_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
    except OSError as error:  # such as a name that is too long
        return f"tokenizer={path!r:.60} cannot be looked at ({error.strerror}): {NO_FILE}"
    if not found:
        return f"{path}: a folder, without a tokenizer's file that is known by its name: {NO_FILE}"
    return f"{path}: a folder and not a tokenizer: give the file in it, as tokenizer={str(found[0])!r}"


def not_encoded(text: str, error: Exception) -> TokenizerError:
    """The error for a text that a library does not encode: what is wrong with the text, or what the library says."""
    try:
        check_unicode(text)
    except TokenizerError as found:
        return found
    return TokenizerError(f"the tokenizer's library does not encode the text {text[:40]!r}...: {error}")


def check_unicode(text: str) -> None:
    """Raise a clear error, as the libraries do not, for a string that UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"character {error.start} ({text[error.start]!r}) is half of a surrogate pair"
        raise TokenizerError(f"the text is not Unicode: {found}, which UTF-8 cannot hold") from error


def describe(data: bytes) -> str:
    """In words, what the bytes are, for an error that they are not a model."""
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
    if config and all(isinstance(value, int) for value in config.values()):
        return "a vocab.json: give the tokenizer.json beside it"
    return f"a JSON object with the keys {', '.join(map(repr, list(config)[:8])) or '(none)'}"


_TIKTOKEN = (
    "a tiktoken rank file, as the tokenizer.model of the original Llama 3 is: it lacks the pattern that cuts text into "
    "words and the special tokens; give the tokenizer.json of the same model, which has both"
)
_LOOKS_LIKE = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs", "a Git LFS pointer and not the file it points to: fetch it with `git lfs pull`"),
    (rb"<(!doctype|html|\?xml|head|body)", "a web page: a download that gave an error or log-in page"),
    (rb"[a-z0-9+/]+=* \d+\r?\n", _TIKTOKEN),
    (rb"#version", "a merges.txt: give the tokenizer.json beside it"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "a compressed file: decompress it first"),
    (rb"PK\x03\x04", "a zip archive: unpack it first"),
    (rb"\[", "a JSON list"),
)
