"""Text as token ids: the tokenizers that streampack brings. Any other `streampack.Tokenizer` works too."""

from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.loading import ByteTokenizer, SentencePieceTokenizer

__all__ = ["ByteTokenizer", "HuggingFaceTokenizer", "SentencePieceTokenizer"]
