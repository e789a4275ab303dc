"""The bound on how often an engine may give other ids than the tokenizer that it stands for.

In:    the messages of a rank's workers, in the order in which they come.
Out:   the same messages, counted; the one that is too much has the error that ends the run after its packs.
Never: a collective; ranks add up as for `max_bad`.
"""

import dataclasses
from collections.abc import Iterator

from streampack.errors import TokenizerError
from streampack.loader.adding import SharedCount
from streampack.loader.messages import Message
from streampack.tokenizers.comparing import MOST, ONE_IN


class EngineDifferences:
    """Counted over all passes of a loader."""

    def __init__(self, shared: SharedCount) -> None:
        self.number = 0
        """Of this rank."""
        self._shared = shared

    def watch(self, messages: Iterator[Message]) -> Iterator[Message]:
        """The messages of a pass."""
        for message in messages:
            self.number += message.engine_differences
            if self.number and message.error is None and (total := self._shared.tell(self.number)) > MOST:
                error = TokenizerError(
                    f"the engine gave other ids than the tokenizer that it stands for in {total} documents, more than "
                    f"{MOST}; a warning names the first one of each process. They have the right ids, but only one "
                    f'document in {ONE_IN} is compared, so others are wrong. Choose the slower engine: '
                    'engine="sentencepiece" for a SentencePiece model, engine="tokenizers" for a tokenizer.json'
                )
                message = dataclasses.replace(message, error=error)  # noqa: PLW2901
            yield message
