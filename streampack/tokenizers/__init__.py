"""Text as token ids: the tokenizers that streampack brings. Any other `streampack.Tokenizer` works too.

`PackedDataset(tokenizer=path)` makes one of these of a file or a folder. To make one by hand:

    HuggingFaceTokenizer("tokenizer.json", bos_token="<|endoftext|>")    # or a tekken.json
    SentencePieceTokenizer("tokenizer.model")
"""

from streampack.records import ControlToken
from streampack.tokenizers.bytes import ByteTokenizer
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

__all__ = ["ByteTokenizer", "ControlToken", "HuggingFaceTokenizer", "SentencePieceTokenizer"]
