"""The bound on how often an engine may give other ids than the tokenizer that it stands for.

In:    the messages of a rank's workers, in the order in which they come; the items that are made of them.
Out:   the same messages, looked through, with a warning of the first difference and its place. The same items; once the
       ranks have met too much, the error that ends the run in the place of the next one.
Never: a collective; ranks add up as for `max_bad`. A text that counts twice, in whatever epochs and on whatever ranks
       documents with it are met.
"""

import logging
from collections.abc import Callable, Iterator

from streampack.errors import TokenizerError
from streampack.loader.adding import SharedCount
from streampack.loader.dealing import Item
from streampack.loader.messages import Message
from streampack.records import MOST_DIFFERENCES
from streampack.tokenizers.comparing import ONE_IN

_log = logging.getLogger(__name__)


class EngineDifferences:
    """Counted over all passes of a loader."""

    def __init__(self, shared_count: Callable[[str], SharedCount]) -> None:
        """`shared_count`: makes the count of a name that all ranks add to."""
        self._shared_count = shared_count
        self._shared = shared_count("engine")
        self._met: set[int] = set()
        """Hashes of the texts; at most one more than `MOST_DIFFERENCES`."""
        self._first_here = 0
        """How many of them no rank had met before."""
        self._total = 0
        """Of all ranks, once this one has met some."""

    @property
    def number(self) -> int:
        """Documents that this rank has met."""
        return len(self._met)

    def look_through(self, messages: Iterator[Message]) -> Iterator[Message]:
        """The messages of a pass."""
        for message in messages:
            for text, told in message.engine_differences:
                self._meet(text, told)
            if self._met:
                self._total = self._shared.tell(self._first_here)
            yield message

    def _meet(self, text: int, told: str) -> None:
        if text in self._met or len(self._met) > MOST_DIFFERENCES:
            return
        if not self._met:
            _log.warning("%s", told)
        self._met.add(text)
        self._first_here += self._shared_count(f"engine/{text:x}").tell(1) == 1

    def watch(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of a pass, made of the messages of `look_through`, up to the one at which there is too much."""
        for item in items:
            if self._total > MOST_DIFFERENCES and item.error is None:
                yield item._replace(pack=None, ends=(), error=_too_many())
                return
            yield item


def _too_many() -> TokenizerError:
    return TokenizerError(
        "the engine gave other ids than the tokenizer that it stands for in more than "
        f"{MOST_DIFFERENCES} documents; a warning of each rank names its first one. They have the right ids, but only "
        f"one document in {ONE_IN} is compared, so others are wrong. Choose the slower engine: "
        'engine="sentencepiece" for a SentencePiece model, engine="tokenizers" for a tokenizer.json'
    )
