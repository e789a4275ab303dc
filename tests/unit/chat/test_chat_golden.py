"""Chats are those of the reference tokenizers: torchtune's for the built-in templates, Transformers' for Jinja."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chats import BY_HAND, CONVERSATIONS, Conversation
from support.thorough import some

from streampack.chat.encoder import ChatEncoder, make_encoder
from streampack.chat.options import Chat
from streampack.errors import RecordError
from streampack.records import Tokenizer
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

# Of the libraries compared with, and none of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
NUMBERS = [*range(len(BY_HAND)), *some(range(len(BY_HAND), len(CONVERSATIONS)), 60)]
"""The conversations that are compared: all that were thought of, and some that were drawn."""


def chat_of(template: Any, tokenizer: Tokenizer, *, train_on: str = "assistant") -> ChatEncoder:
    return make_encoder(
        Chat(template, train_on),
        tokenizer=tokenizer,
        add_bos=True,
        add_eos=True,
        read=lambda path: Path(path).read_bytes(),
    )


def compare(
    chat: ChatEncoder, conversation: Conversation, reference: Callable[[Conversation], tuple[list[int], Any]]
) -> None:
    ids, mask = chat(conversation)
    expected, trained = reference(conversation)
    assert ids.dtype == np.int32 and mask.dtype == np.bool_
    assert ids.tolist() == expected
    assert mask.tolist() == [bool(value) for value in trained]


# --- torchtune


@pytest.fixture(scope="module")
def sentencepiece_model() -> Path:
    """Mistral's first one: the 32,000 pieces of Llama 2 and Phi-3."""
    package = pytest.importorskip("mistral_common")
    return Path(package.__file__).parent / "data/tokenizer.model.v1"


def torchtunes(tokenize: Callable[..., Any], conversation: Conversation, **options: Any) -> tuple[list[int], Any]:
    """Ids, and what is trained, the contrary of its mask."""
    message = pytest.importorskip("torchtune.data", exc_type=ImportError).Message
    messages = [message(**one, masked=one["role"] != "assistant") for one in conversation]
    ids, masked = tokenize(messages, **options)
    return ids, [not value for value in masked]


@pytest.fixture(scope="module")
def pieces(sentencepiece_model: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(sentencepiece_model)


@pytest.fixture(scope="module")
def phi3(sentencepiece_model: Path) -> Any:
    module = pytest.importorskip("torchtune.models.phi3", exc_type=ImportError)
    return module.phi3_mini_tokenizer(str(sentencepiece_model))


@pytest.mark.parametrize("number", NUMBERS)
def test_phi3_is_torchtunes(phi3: Any, pieces: SentencePieceTokenizer, number: int) -> None:
    chat = chat_of("phi3", pieces)
    compare(chat, CONVERSATIONS[number], lambda one: torchtunes(phi3.tokenize_messages, one, add_eos=True))


@pytest.fixture(scope="module")
def llama2(sentencepiece_model: Path) -> Any:
    module = pytest.importorskip("torchtune.models.llama2", exc_type=ImportError)
    return module.Llama2Tokenizer(str(sentencepiece_model), prompt_template=module.Llama2ChatTemplate())


@pytest.mark.parametrize("number", NUMBERS)
def test_llama2_is_torchtunes(llama2: Any, pieces: SentencePieceTokenizer, number: int) -> None:
    chat = chat_of("llama2", pieces)
    compare(chat, CONVERSATIONS[number], lambda one: torchtunes(llama2.tokenize_messages, one))


@pytest.fixture(scope="module")
def mistral(sentencepiece_model: Path) -> Any:
    module = pytest.importorskip("torchtune.models.mistral", exc_type=ImportError)
    return module.MistralTokenizer(str(sentencepiece_model), prompt_template=module.MistralChatTemplate())


@pytest.mark.parametrize("number", NUMBERS)
def test_mistral_is_torchtunes(mistral: Any, pieces: SentencePieceTokenizer, number: int) -> None:
    chat, conversation = chat_of("mistral", pieces), CONVERSATIONS[number]
    if any(message["role"] == "system" for message in conversation):
        with pytest.raises(ValueError, match="System prompts are not supported"):
            torchtunes(mistral.tokenize_messages, conversation)
        with pytest.raises(RecordError, match="role 'system'; the chat template 'mistral' knows user, assistant"):
            chat(conversation)
        return
    compare(chat, conversation, lambda one: torchtunes(mistral.tokenize_messages, one))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its tokenizer with a vocabulary of bytes alone: what is compared is what stands around them."""
    module = pytest.importorskip("torchtune.models.llama3", exc_type=ImportError)
    path = tmp_path_factory.mktemp("llama3") / "bytes.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256)))
    return module.llama3_tokenizer(str(path))


class Bytes:
    """The same vocabulary for streampack, without its control tokens."""

    bos_id = eos_id = pad_id = None
    vocab_size = 256
    digest = "bytes"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


@pytest.mark.parametrize("number", NUMBERS)
def test_llama3_is_torchtunes(llama3: Any, number: int) -> None:
    compare(chat_of("llama3", Bytes()), CONVERSATIONS[number], lambda one: torchtunes(llama3.tokenize_messages, one))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level(tmp_path_factory.mktemp("byte-level"), strips=False)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "strips"])
def any_byte_level(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level(tmp_path_factory.mktemp("byte-level"), strips=request.param)


def write_byte_level(folder: Path, *, strips: bool) -> Path:
    """A small byte-level BPE: tokenizer.json, vocab.json and merges.txt, with ChatML's tokens.

    `strips`: some of them take the white space beside them along, as Phi-3's do.
    """
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    texts = [message["content"] for conversation in CONVERSATIONS for message in conversation]
    tokenizer.train_from_iterator([*texts, "user\n assistant\n system\n \n\n"] * 3, trainer)
    tokenizer.model.save(str(folder))
    start = tokenizers.AddedToken("<|im_start|>", special=True, rstrip=strips)
    end = tokenizers.AddedToken("<|im_end|>", special=True, lstrip=strips, rstrip=strips)
    tokenizer.add_special_tokens(["<|endoftext|>", start, end])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("number", NUMBERS)
def test_chatml_is_torchtunes_qwen2(byte_level: Path, number: int) -> None:
    module = pytest.importorskip("torchtune.models.qwen2", exc_type=ImportError)
    tokenizer = HuggingFaceTokenizer(byte_level / "tokenizer.json")
    special = {name: token.id for name, token in tokenizer.control_tokens().items()}
    files = (str(byte_level / "vocab.json"), str(byte_level / "merges.txt"))
    qwen2 = module.Qwen2Tokenizer(*files, special_tokens=special)
    compare(chat_of("chatml", tokenizer), CONVERSATIONS[number], lambda one: torchtunes(qwen2.tokenize_messages, one))


# --- Transformers

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}"
    "{% endfor %}"
)
TRIMMED = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {{- ' ' }}{% generation %}{{ message.content | trim + eos_token }}{% endgeneration %}\n"
    "    {%- else %}\n"
    "        {{- '[' + (message.role | upper) + '] ' + (message.content | trim) }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}"
)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("template", [CHATML, TRIMMED], ids=["chatml", "trimmed"])
def test_jinja_templates_give_what_transformers_gives(
    any_byte_level: Path, tmp_path: Path, template: str, number: int
) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"chat_template": template, "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(any_byte_level / "tokenizer.json"),
        chat_template=template,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )

    def apply(one: Conversation) -> tuple[list[int], Any]:
        result = reference.apply_chat_template(one, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return result["input_ids"], result["assistant_masks"]

    tokenizer = HuggingFaceTokenizer(any_byte_level / "tokenizer.json")
    chat = chat_of(str(tmp_path / "tokenizer_config.json"), tokenizer)
    compare(chat, CONVERSATIONS[number], apply)
