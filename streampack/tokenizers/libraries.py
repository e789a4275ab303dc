"""The versions of the libraries that make the ids: they may differ between releases, and no digest of ours sees it.

In:  a tokenizer, one of ours or a user's. Out: {name of the distribution: version}.
"""

import functools
import importlib.metadata

from streampack.records import Tokenizer
from streampack.tokenizers.comparing import Engine

_OURS = {
    "sentencepiece": ("sentencepiece",),
    "gigatoken": ("gigatoken",),
    "huggingface": ("tokenizers",),
}
"""Module of this package -> the libraries behind its tokenizers."""


def libraries_of(tokenizer: Tokenizer | None) -> dict[str, str]:
    """The distributions whose code gives the tokenizer's ids, with their versions; empty where there are none."""
    found = libraries_of(tokenizer.plain) if isinstance(tokenizer, Engine) else {}
    for base in type(tokenizer).__mro__:
        package, _, name = base.__module__.rpartition(".")
        names = _OURS.get(name, ()) if package == "streampack.tokenizers" else (base.__module__.partition(".")[0],)
        for each in names:
            if version := _version(each):
                found[each] = version
    found.pop("streampack", None)
    return found


@functools.cache  # it looks through the files of all distributions, and each state asks for it
def _version(name: str) -> str:
    """The version of a distribution; empty for a module of the user's, or one of Python."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
