"""A `tokenizer.json` of Hugging Face or a `tekken.json` as a tokenizer: ids, and which tokens begin, end and pad.

In:  the bytes of the file, then texts.
Out: int32 ids of each text alone.
Never: the id of a special token for its text; an id that depends on chance (both: `guarding`); a text that is cut or
padded.
"""

import functools
import hashlib
import os
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.tokenizers.files import describe, no_such_token, not_encoded, read_model_file
from streampack.tokenizers.guarding import Guarded, guard
from streampack.tokenizers.pieces import pieces_of
from streampack.tokenizers.tekken import as_tokenizer_json, is_tekken

# Names that mean one thing in every published tokenizer.json. `<|endoftext|>` begins documents too in GPT-2, but not
# in the files that came after it, so it is taken for an EOS only.
_KNOWN_NAMES = {
    "bos_token": ("<s>", "<bos>", "<BOS>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"),
    "eos_token": ("</s>", "<eos>", "<EOS>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"),
    "pad_token": ("<pad>", "<PAD>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
}


class HuggingFaceTokenizer:
    """A `tokenizer.json` or Mistral's `tekken.json`, by the Rust library `tokenizers` (`pip install streampack[hf]`).

    The file does not say which tokens begin and end a document. They are taken from its post-processor, else from the
    added tokens by well-known names, where exactly one fits; a name given here wins. Truncation, padding and dropout
    that are set in the file are switched off.

    Args:
        tokenizer_json: the file's bytes, or a local path of it.
        bos_token: the token (not its id) that begins a document; "": none does.
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
        try:
            config = msgspec.json.decode(data)
            if isinstance(config, dict) and is_tekken(config):
                config = as_tokenizer_json(config)
                data = msgspec.json.encode(config)
            if not (isinstance(config, dict) and isinstance(config.get("model"), dict)):
                raise ValueError("no object under the key 'model'")
        except TokenizerError as error:
            raise TokenizerError(error.message, url=name) from error
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"not a tokenizer.json: {describe(data)}", url=name) from error
        self._source = functools.partial(type(self), **names), (data,)  # type: ignore[arg-type]  # names are its arguments
        try:
            import tokenizers
        except ImportError as error:
            remedy = "a tokenizer.json needs the package `tokenizers`: pip install streampack[hf]"
            raise TokenizerError(remedy, url=name) from error

        try:
            ids = _vocabulary(config)
            if not ids:
                raise TokenizerError("a tokenizer.json with an empty vocabulary", url=name)
            named = {key: token for key, token in names.items() if token is not None}
            chosen = {key: token for key, token in (_special_tokens(config) | named).items() if token}
            for key, token in chosen.items():
                if token not in ids:
                    special = [each["content"] for each in config.get("added_tokens", []) if each.get("special")]
                    raise no_such_token(key, token, special, of="" if key in named else "its post-processor")
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
            ends = {chosen[key] for key in ("bos_token", "eos_token") if key in chosen}
            self.special_tokens = list(self._control)
            guarded = guard(config, dict.fromkeys([*self._control, *chosen.values()]), ends, self.vocab_size)
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(msgspec.json.encode(guarded.config))
            for token, before in zip(guarded.config["added_tokens"], config.get("added_tokens", []), strict=True):
                given = self._tokenizer.token_to_id(token["content"])
                if given != token["id"] and token["content"]:
                    raise TokenizerError(
                        f"the token {before['content']!r} has the id {token['id']} in the file and {given} in the "
                        "library, which numbers added tokens that are not in the vocabulary without gaps: mend the file"
                    )
            self._replaced = _replacements(guarded, tokenizers.Tokenizer)
            self._lost_id = guarded.lost_id
        except TokenizerError as error:
            raise TokenizerError(error.message, url=None if error.url else name) from error
        except Exception as error:  # the library raises bare Exception; a broken file has failed above already
            message = f"a tokenizer.json that cannot be used ({type(error).__name__}: {error})"
            raise TokenizerError(message, url=name) from error
        self._tokenizer.encode_special_tokens = True  # the text of a special token is text

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n].

        Raises:
            TokenizerError: it is not Unicode, or the file has no token for one of its characters, nor an unknown token.
        """
        try:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise not_encoded(text, error) from error
        ids = np.array(encoded.ids, dtype=np.int32)
        return ids if self._replaced is None else self._final(ids, encoded, text)[0]

    def encode_with_offsets(self, text: str) -> tuple[Tokens, NDArray[np.int64]]:
        """The ids of `text`, int32 [n], and where each begins and ends in it, int64 [n, 2] in characters."""
        try:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise not_encoded(text, error) from error
        ids, offsets = np.array(encoded.ids, dtype=np.int32), np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)
        if self._replaced is None:
            return ids, offsets
        ids, repeats = self._final(ids, encoded, text)
        return ids, offsets if repeats is None else np.repeat(offsets, repeats, axis=0)

    def _final(self, ids: Tokens, encoded: Any, text: str) -> tuple[Tokens, list[int] | None]:
        """The ids with those of stand-ins replaced, and by how many each id was (None: by one, all of them)."""
        assert self._replaced is not None
        if not ids.size or ids.max() < self.vocab_size:
            return ids, None
        if (ids == self._lost_id).any():
            begin, end = encoded.offsets[int(np.argmax(ids == self._lost_id))]
            raise TokenizerError(
                f"the tokenizer's file has no token for {text[begin:end]!r}, at character {begin} of the text, nor a "
                "token for unknown text; take such characters out with a transform, or use another tokenizer"
            )
        parts = [self._replaced.get(token, [token]) for token in ids.tolist()]
        return np.array([token for part in parts for token in part], np.int32), list(map(len, parts))

    def id_to_piece(self, token: int) -> str | bytes:
        """What an id stands for: bytes, where the vocabulary is byte-level; else text with U+2581 for a space."""
        return self._pieces.get(token, f"<{token}>")

    @functools.cached_property
    def _pieces(self) -> dict[int, str | bytes]:
        return pieces_of(msgspec.json.decode(self._source[1][0]))

    def library_config(self) -> dict[str, Any] | None:
        """What the library was given, with the special tokens out of reach of any text; None: ids are replaced."""
        if self._replaced is not None:
            return None
        config: dict[str, Any] = msgspec.json.decode(self._tokenizer.to_str())
        return config

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


def _replacements(guarded: Guarded, library: Any) -> dict[int, list[int]] | None:
    """The id of each stand-in -> the ids of its text; None: the library's ids are final."""
    if guarded.without is None:
        return None if guarded.lost_id is None else {}
    without = library.from_buffer(msgspec.json.encode(guarded.without))
    return {token: without.encode(text, add_special_tokens=False).ids for token, text in guarded.stand_ins.items()}


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
