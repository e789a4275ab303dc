"""The files of tokenizers: they are read, and other files are recognised, so that an error can say what they are."""

import difflib
import os
import re
from collections.abc import Collection
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
    if obstacle := obstacle_of_text(path):
        raise TokenizerError(obstacle)
    if (folder := Path(path)).is_dir():
        found = [file for pattern in _MODEL_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
        what = f"give the file in it, {str(found[0])!r}" if found else NO_FILE
        raise TokenizerError(f"a folder, and not a file of a tokenizer: {what}", url=path)
    try:
        return Path(path).read_bytes().removeprefix(BOM), name or path
    except OSError as error:
        raise TokenizerError(f"the tokenizer cannot be read ({error.strerror})", url=path) from error


NO_FILE = "give the path or URL of a SentencePiece model, a tokenizer.json, a tekken.json, or of the folder with one"
"""What to do where nothing is at a path."""
_MODEL_FILES = (
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "*.model",
)
_HUB = re.compile(
    r"(?:hf://|https?://huggingface\.co/(?!.*/(?:resolve|raw)/))([\w.-]+(?:/(?!(?:blob|tree)/)[\w.-]+)?)"
)
"""A URL of the hub, but for one that gives a file's bytes; the name of the repository in it."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?(?<!\.json)(?<!\.model)")


def obstacle_of_text(path: str) -> str | None:
    """Why a text cannot be the path or URL of a tokenizer, and what to give; None where it may be one."""
    if not path or "\n" in path or "\0" in path or path.lstrip()[:1] == "{":
        return f"tokenizer={path!r:.60} is not a path: {NO_FILE}"
    if hub := _HUB.match(path):
        return f"tokenizer={path!r:.200}: nothing is fetched from the Hugging Face hub: {_download(hub[1])}"
    try:
        Path(path).is_dir()
    except OSError as error:  # such as a name that is too long
        return f"tokenizer={path!r:.60} cannot be looked at ({error.strerror}): {NO_FILE}"
    return None


def nothing_at(path: str) -> str:
    """The error for a path where nothing is: it may be a name of the Hugging Face hub."""
    if not _HUB_NAME.fullmatch(path):
        return f"no such tokenizer: {NO_FILE}"
    return f"no such tokenizer: names of the Hugging Face hub are not looked up; if this is one, {_download(path)}"


def _download(name: str) -> str:
    command = f"hf download {name} tokenizer.json tokenizer_config.json --local-dir DIR"
    return f"download it with `{command}`, and give the folder, tokenizer=DIR"


def no_such_token(
    key: str, token: str, special: Collection[str], what: str = "not in the vocabulary"
) -> TokenizerError:
    """The error for a BOS, EOS or PAD that cannot be: the special tokens that it may be, the most alike first."""
    alike = difflib.get_close_matches(token, special, n=12, cutoff=0)
    listed = f"its special tokens are {', '.join(alike)}" if alike else "it has no special tokens"
    more = f" and {len(special) - len(alike):,} more" if len(special) > len(alike) else ""
    return TokenizerError(
        f"{key}={token!r} is {what} of the file: name another token with {key}= ({listed}{more}). This one is from "
        "that argument, from the tokenizer_config.json beside the file, or from its post-processor"
    )


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
