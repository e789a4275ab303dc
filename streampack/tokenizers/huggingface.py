"""A `tokenizer.json` of Hugging Face as a tokenizer: its ids, and which of its tokens begin, end and pad.

In:  the bytes of the file, then texts.
Out: int32 ids of each text alone.
Never: the id of a special token for its text; a text that is cut or padded.
"""

import functools
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.tokenizers.files import check_unicode, describe, read_model_file

# Names that mean one thing in every published tokenizer.json. `<|endoftext|>` begins documents too in GPT-2, but not
# in the files that came after it, so it is taken for an EOS only.
_KNOWN_NAMES = {
    "bos_token": ("<s>", "<bos>", "<BOS>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"),
    "eos_token": ("</s>", "<eos>", "<EOS>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"),
    "pad_token": ("<pad>", "<PAD>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
}


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read by the Rust library `tokenizers` (`pip install streampack[hf]`).

    The file does not say which tokens begin and end a document. They are taken from its post-processor, else from the
    added tokens by well-known names, where exactly one fits; a name given here wins. Truncation and padding that are
    set in the file are switched off.

    Args:
        tokenizer_json: the file's bytes, or a local path of it.
        bos_token: the token (not its id) that begins a document.
        eos_token: the token that ends a document.
        pad_token: the token that fills a pack.
        name: what error messages call the file; by default the path.
    """

    def __init__(
        self,
        tokenizer_json: bytes | str | os.PathLike[str],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        name: str | None = None,
    ) -> None:
        data, name = read_model_file(tokenizer_json, name)
        names = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        self._source = functools.partial(type(self), **names), (data,)  # type: ignore[arg-type]
        try:
            config = msgspec.json.decode(data)
            if not (isinstance(config, dict) and isinstance(config.get("model"), dict)):
                raise ValueError("no object under the key 'model'")
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"not a tokenizer.json: {describe(data)}", url=name) from error
        try:
            import tokenizers
        except ImportError as error:
            remedy = "a tokenizer.json needs the package `tokenizers`: pip install streampack[hf]"
            raise TokenizerError(remedy, url=name) from error

        try:
            ids = _vocabulary(config)
            chosen = _special_tokens(config) | {key: token for key, token in names.items() if token is not None}
            for key, token in chosen.items():
                if token not in ids:
                    raise TokenizerError(f"{key}={token!r} is not in the vocabulary of the file", url=name)
            self.bos_id, self.eos_id, self.pad_id = (ids.get(chosen.get(key, "")) for key in names)
            self.vocab_size = max(ids.values()) + 1
            self._control = {
                token["content"]: ControlToken(token["id"], bool(token.get("lstrip")), bool(token.get("rstrip")))
                for token in config.get("added_tokens", [])
                if token.get("special") or token["content"] in chosen.values()
            }
            config |= {"truncation": None, "padding": None, "post_processor": None}
            # The ids of BOS and EOS stand in the stream as well, so the digest names them too.
            canonical = msgspec.json.encode([config, self.bos_id, self.eos_id, self.pad_id], order="sorted")
            self.digest = f"huggingface:{hashlib.sha256(canonical).hexdigest()}"
            self.special_tokens = _guard_special_tokens(config, chosen.values())
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(msgspec.json.encode(config))
        except TokenizerError:
            raise
        except Exception as error:  # the library raises bare Exception; a broken file has failed above already
            message = f"a tokenizer.json that cannot be used ({type(error).__name__}: {error})"
            raise TokenizerError(message, url=name) from error
        self._tokenizer.encode_special_tokens = True  # the text of a special token is text

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        except Exception:
            check_unicode(text)
            raise

    def encode_with_offsets(self, text: str) -> tuple[Tokens, NDArray[np.int64]]:
        """The ids of `text`, int32 [n], and where each begins and ends in it, int64 [n, 2] in characters."""
        try:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:
            check_unicode(text)
            raise
        return np.array(encoded.ids, dtype=np.int32), np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)

    def control_tokens(self) -> dict[str, ControlToken]:
        """The special tokens of the file, by name."""
        return dict(self._control)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._source

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer(vocab_size={self.vocab_size}, digest={self.digest!r})"


def _vocabulary(config: dict[str, Any]) -> dict[str, int]:
    vocab = config["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: index for index, entry in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in config.get("added_tokens", [])}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Which token begins and ends a document and which one pads, where the file leaves no doubt."""
    added = [token["content"] for token in config.get("added_tokens", [])]
    found = {key: [name for name in names if name in added] for key, names in _KNOWN_NAMES.items()}
    if config.get("padding") and config["padding"]["pad_token"] in added:
        found["pad_token"] = [config["padding"]["pad_token"]]
    processor = config.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            template: list[str] = [part.get("SpecialToken", {"id": ""})["id"] for part in step["single"]]
            text = template.index("")
            found["bos_token"] = template[:text] or found["bos_token"]
            found["eos_token"] = template[text + 1 :] or found["eos_token"]
        elif step.get("type") in ("RobertaProcessing", "BertProcessing"):
            found["bos_token"], found["eos_token"] = [step["cls"][0]], [step["sep"][0]]
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def _guard_special_tokens(config: dict[str, Any], chosen: Iterable[str]) -> list[str]:
    """Makes `config` such that no text reaches a special token, and returns the names of these.

    `encode_special_tokens` stops the search for their text. Models that look whole pieces up would still find them in
    their vocabulary (in Unigram `</s>` even has the best score), so there they get names that no text holds; ids stay.
    """
    special = [t for t in config.get("added_tokens", []) if t.get("special") or t["content"] in chosen]
    names = [token["content"] for token in special]
    model = config["model"]
    vocab = model.get("vocab", {})
    renamed = {name: f"\ufdd0{hashlib.sha256(name.encode()).hexdigest()}\ufdd0" for name in names}
    if isinstance(vocab, list):
        model["vocab"] = [[renamed.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]
    elif "merges" not in model:
        renamed.pop(model.get("unk_token", ""), None)
        model["vocab"] = {renamed.get(name, name): token for name, token in vocab.items()}
    else:
        renamed = {}  # BPE: merges alone make pieces
    for token in special:
        token.update(special=True, content=renamed.get(token["content"], token["content"]))
    return names
