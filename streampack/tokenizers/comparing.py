"""What stands in a tokenizer's place to give its ids faster, and the comparison of both in the run.

In:  a tokenizer, the **plain** one, and a text.
Out: its ids. One document in `ONE_IN`, chosen by its content, is encoded by both; where they differ, or the engine
     fails, it has the plain tokenizer's ids, and is remembered until somebody asks who knows its place.
Never: ids that depend on anything but the text; a difference that nobody learns of.
"""

import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from streampack.errors import TokenizerError
from streampack.hashing import hash_name
from streampack.records import MOST_DIFFERENCES, Difference, Tokenizer, Tokens

ONE_IN = 256
"""One document in so many is encoded by both; the same ones on every rank and worker."""
MAX_BYTES = 2**20
"""A larger document is not compared, as SentencePiece takes hundreds of bytes of memory for each byte."""


class Engine(ABC):
    """What gives a tokenizer's ids faster, and has all else of it.

    Args:
        plain: the tokenizer in whose place it is.
    """

    engine: str
    """Its name for `choose_engine`."""

    def __init__(self, plain: Tokenizer) -> None:
        self.plain: Any = plain
        # A check against the protocol looks for attributes that are there without `__getattr__`.
        self.bos_id, self.eos_id, self.pad_id = plain.bos_id, plain.eos_id, plain.pad_id
        self.vocab_size, self.digest = plain.vocab_size, plain.digest

    @abstractmethod
    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "plain":  # looked for while a copy has no attributes yet
            raise AttributeError(name)
        return getattr(self.plain, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plain!r})"


class ComparedEngine(Engine):
    """An engine of another library than the plain tokenizer's."""

    library: str
    """What errors call it."""
    own_name: str
    """What errors call the plain tokenizer's library, and the `engine=` that asks for it."""

    def __init__(self, plain: Tokenizer) -> None:
        super().__init__(plain)
        self._untold: list[Difference] = []
        """At most one more than `MOST_DIFFERENCES`, as more need not be known."""

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            plain: Tokens = self.plain.encode(text)  # its error says what is wrong
            return plain
        try:
            ids = self._encode(text, data)
        except BaseException as error:  # a panic of Rust is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # that of Rust
                raise
            return self._differs(text, f"fails ({type(error).__name__}: {error})", self.plain.encode(text))
        # Ends and length are cheap to hash and differ where documents do.
        chosen = zlib.crc32(data[:64], zlib.crc32(data[-64:], len(data) & 0xFFFFFFFF)) % ONE_IN == 0
        if chosen and len(data) <= MAX_BYTES:
            right = self.plain.encode(text)
            if not np.array_equal(ids, right):
                return self._differs(text, _difference(ids, right), right)
        return ids

    @abstractmethod
    def _encode(self, text: str, data: bytes) -> Tokens:
        """The ids of `text`, whose UTF-8 is `data`, from the library."""

    def untold(self) -> list[Difference]:
        """Those of different texts that this process has met since it was last asked, the first ones of many."""
        found, self._untold = self._untold, []
        return found

    def compare(self, texts: list[str]) -> None:
        """Raise a TokenizerError for a release of the library that does not give the plain tokenizer's ids."""
        try:
            for text in texts:
                ids, right = self._encode(text, text.encode()), self.plain.encode(text)
                if not np.array_equal(ids, right):
                    what = f"{self.library} {_difference(ids, right)} for {_shown(text)}"
                    raise TokenizerError(f'{what}; use engine="{self.own_name}"')
        except TokenizerError:
            raise
        except Exception as error:  # another release, with another interface
            found = f"{self.library} cannot be used ({type(error).__name__}: {error})"
            raise TokenizerError(f'{found}: install another release, or use engine="{self.own_name}"') from error

    def _differs(self, text: str, what: str, right: Tokens) -> Tokens:
        number = hash_name(text)
        if len(self._untold) <= MOST_DIFFERENCES and all(each.text != number for each in self._untold):
            told = (
                f"{self.library} {what} for {_shown(text)}. The document has the ids of {self.own_name}. Others that "
                f'are not among those compared, one in {ONE_IN}, may be wrong: use engine="{self.own_name}", or '
                "another release"
            )
            self._untold.append(Difference(number, told))
        return right

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_untold": []}


def _shown(text: str) -> str:
    return f"a document of {len(text):,} characters, {text[:40]!r}..."


def _difference(ids: Tokens, right: Tokens) -> str:
    shared = min(len(ids), len(right))
    first = int(np.argmax(np.append(ids[:shared] != right[:shared], True)))  # the shared part's end if all is equal
    return (
        f"gives {ids[first : first + 3].tolist()} instead of {right[first : first + 3].tolist()} from token {first} on"
    )
