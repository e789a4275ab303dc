"""The files of tokenizers: they are read, and other files are recognised, so that an error can say what they are."""

import difflib
import os
import re
from collections.abc import Collection, Iterable
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
    if obstacle := obstacle_of_text(path):
        raise TokenizerError(obstacle)
    if "://" in path:
        raise TokenizerError("only local paths are read here: pass the bytes of a remote model", url=path)
    if (folder := Path(path)).is_dir():
        found = [file for pattern in _MODEL_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
        names = (file.name for file in folder.iterdir())
        what = f"give the file in it, {str(found[0])!r}" if found else f"{NO_FILE}{others_in(names)}"
        raise TokenizerError(f"a folder, and not a file of a tokenizer: {what}", url=path)
    try:
        return Path(path).read_bytes().removeprefix(BOM), name or path
    except FileNotFoundError as error:
        raise TokenizerError(nothing_at(path), url=path) from error
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
_LIKELY = re.compile(r"(?!.*(?:config|_map|\.index)\.json$).*\.(?:json|model|tiktoken)|merges\.txt")
"""Names of files that may be a tokenizer."""
_HUB = re.compile(r"hf:/*|https?://(?:www\.)?(?:huggingface\.co|hf\.co)(?:/|$)(?!.*/(?:resolve|raw)/)", re.IGNORECASE)
"""How a URL of the hub begins, but for one that gives a file's bytes."""
_HOST = re.compile(r"(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_PART = r"(?![\w.-]+\.(?:json|model|jinja)(?:/|$))[\w-][\w.-]*"
_REPOSITORY = re.compile(
    rf"(?:models/)?(?P<name>{_PART}(?:/(?!(?:blob|tree|resolve|raw)/){_PART})?)"
    r"(?:@(?P<at>(?:refs/\w+/)?[^/]+)|/(?:blob|tree|resolve|raw)/(?P<of>[^/]+))?"
)
"""A repository of the hub, and perhaps its revision, after the beginning of a URL."""
_HUB_NAME = re.compile(rf"(?:models/)?{_PART}(?:/{_PART})?(?:@[^/]+)?(?:/(?:tokenizer|tekken)[\w.]*)?")
_IN_CACHE = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?")
_ENCODING = re.compile(r"(?:tiktoken:/*)?(?:r50k|p50k|cl100k|o200k)_\w+")


def obstacle_of_text(path: str) -> str | None:
    """Why a text cannot be the path or URL of a tokenizer, and what to give; None where it may be one."""
    if not path or "\n" in path or "\0" in path or path.lstrip()[:1] == "{":
        return f"tokenizer={path!r:.60} is not a path: {NO_FILE}"
    if hub := _HUB.match(path):
        what = "nothing is fetched from the Hugging Face hub"
        return f"tokenizer={path!r:.200}: {what}: {_download(path[hub.end() :])}"
    try:
        Path(path).is_dir()
    except OSError as error:  # such as a name that is too long
        return f"tokenizer={path!r:.60} cannot be looked at ({error.strerror}): {NO_FILE}"
    return None


def nothing_at(path: str) -> str:
    """The error for a path where nothing is: it may be a name of the Hugging Face hub, or of tiktoken."""
    if _ENCODING.fullmatch(path):
        what = "encodings of tiktoken are not known by name, and their files lack the pattern that cuts text into words"
        return f"no such tokenizer: {what}; give the path or URL of a tokenizer.json with the same vocabulary"
    host = _HOST.match(path)
    if cached := _IN_CACHE.fullmatch(path):
        path = "/".join(filter(None, cached.groups()))
    elif not host and not _HUB_NAME.fullmatch(path):
        return f"no such tokenizer: {NO_FILE}"
    what = "names of the Hugging Face hub are not looked up"
    return f"no such tokenizer: {NO_FILE}; {what}: if this is one, {_download(path[host.end() if host else 0 :])}"


def others_in(names: Iterable[str]) -> str:
    """More for the error of a folder without a file of a known name: those of its files that may be a tokenizer."""
    likely = sorted(filter(_LIKELY.fullmatch, names))
    if not likely:
        return ""
    more = f" and {len(likely) - 8} more" if len(likely) > 8 else ""
    made = f"; {_FROM_VOCAB}" if {"vocab.json", "merges.txt"} & {*likely} else ""
    return f"; in it are {', '.join(likely[:8])}{more}: if one of them is the tokenizer, give the file itself{made}"


_FROM_VOCAB = (
    "of a vocab.json and a merges.txt, Transformers' `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` makes a "
    "tokenizer.json"
)


def _download(rest: str) -> str:
    """How to get the tokenizer of a repository; `rest`: a URL of it without its beginning."""
    found = _REPOSITORY.match(rest)
    name, revision = (found["name"], found["at"] or found["of"]) if found else ("NAME", None)
    at = f" --revision {revision}" if revision not in (None, "main") else ""
    # Several names are patterns, of which none must be there.
    files = '"tokenizer*" tekken.json special_tokens_map.json chat_template.jinja'
    return f"download it with `hf download {name} {files}{at} --local-dir DIR`, and give the folder, tokenizer=DIR"


def no_such_token(
    key: str, token: str, special: Collection[str], what: str = "not in the vocabulary", *, of: str = ""
) -> TokenizerError:
    """The error for a BOS, EOS or PAD that cannot be: the special tokens that it may be, the most alike first.

    `of`: what has named it, where no argument did.
    """
    alike = difflib.get_close_matches(token, special, n=12, cutoff=0)
    listed = f"its special tokens are {', '.join(alike)}" if alike else "it has no special tokens"
    more = f" and {len(special) - len(alike):,} more" if len(special) > len(alike) else ""
    named = f"{key}={token!r}{f' of {of}' if of else ''}"
    return TokenizerError(f"{named} is {what} of the file: name another token with {key}= ({listed}{more})")


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
        return f"a vocab.json: give the tokenizer.json beside it; {_FROM_VOCAB}"
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
    (rb"#version", f"a merges.txt: give the tokenizer.json beside it; {_FROM_VOCAB}"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "a compressed file: decompress it first"),
    (rb"PK\x03\x04", "a zip archive: unpack it first"),
    (rb"\[", "a JSON list"),
)
