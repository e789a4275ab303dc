"""Text as token ids: the tokenizers that streampack brings. Any other `streampack.Tokenizer` works too."""

from streampack.records import ControlToken
from streampack.tokenizers.bytes import ByteTokenizer
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

__all__ = ["ByteTokenizer", "ControlToken", "HuggingFaceTokenizer", "SentencePieceTokenizer"]
