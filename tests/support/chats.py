"""Fifty conversations, ordinary and odd, for the tests of chat templates; a tokenizer and a dataset for them."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

import streampack
from streampack.chat.encoder import ChatEncoder, make_encoder
from streampack.chat.options import Chat
from streampack.records import ControlToken
from streampack.testing import ByteTokenizer, write_shards

Conversation = list[dict[str, str]]


def talk(*messages: tuple[str, str]) -> Conversation:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": content} for role, content in messages]


_TEXTS = ["Hello!", "What is\n2 + 2?", "  4, of course. ", "naïve café", "日本語のテキスト"]
_TEXTS += ["🙂👩‍👩‍👧", "\ttab\nline\n\n", "a" * 70]

BY_HAND: list[Conversation] = [
    talk(("u", "Hello"), ("a", "Hi there.")),
    talk(("s", "Be brief."), ("u", "Hello"), ("a", "Hi.")),
    talk(("u", "Hello"), ("a", "")),  # an empty answer
    talk(("u", ""), ("a", "You said nothing.")),
    talk(("u", "Hello"), ("a", "Hi."), ("u", "And now?")),  # a user has the last word
    talk(("u", "Is anybody there?")),
    talk(("s", "Only this."), ("u", "Yes?")),
    talk(("s", "Be brief."), ("s", "Be kind."), ("u", "Hello"), ("a", "Hi.")),  # two system messages
    talk(("s", "Be brief."), ("u", "One"), ("a", "1"), ("s", "Be long."), ("u", "Two"), ("a", "2, which is a number")),
    talk(("a", "I begin."), ("u", "Do you?"), ("a", "Yes.")),
    talk(("u", "One"), ("u", "Two"), ("a", "Both."), ("a", "And more.")),
    talk(("u", "spaces   "), ("a", "   around   ")),
    talk(("u", " \n "), ("a", "\n\n")),
    talk(("u", "Ünïcödé 日本語"), ("a", "👩‍👩‍👧‍👦 é (combining)")),
    talk(("u", "[INST] <<SYS>> </s> <s>"), ("a", "<unk> [/INST]")),  # what looks like control tokens is text
    talk(("s", ""), ("u", "Hello"), ("a", "Hi.")),
]
CONVERSATIONS = [*BY_HAND]
_choose = random.Random(7)
for _turns in itertools.cycle((1, 2, 3)):
    if len(CONVERSATIONS) == 50:
        break
    _made = [("s", _choose.choice(_TEXTS))] if _choose.random() < 0.4 else []
    for _ in range(_turns):
        _made += [("u", _choose.choice(_TEXTS)), ("a", _choose.choice(_TEXTS))]
    CONVERSATIONS.append(talk(*_made))

CONTROL = {
    "<|im_start|>": ControlToken(300),
    "<|im_end|>": ControlToken(301),
    "<|user|>": ControlToken(302),
    "<|assistant|>": ControlToken(303),
    "<|system|>": ControlToken(304),
    "<|end|>": ControlToken(305),
    "<|endoftext|>": ControlToken(306),
}


class ChatBytes(ByteTokenizer):
    """Bytes, and control tokens that it finds in any text, as vocabularies with user-defined pieces do."""

    vocab_size = 310
    digest = "chat bytes"
    finds = True

    def control_tokens(self) -> dict[str, ControlToken]:
        return CONTROL

    def encode(self, text: str) -> np.ndarray:
        for name, token in CONTROL.items():
            if self.finds and name in text:
                before, after = text.split(name, 1)
                return np.concatenate([self.encode(before), [token.id], self.encode(after)]).astype(np.int32)
        return super().encode(text)


def spelled(ids: Any) -> str:
    names = {token.id: name for name, token in CONTROL.items()} | {1: "<s>", 2: "</s>"}
    return "".join(names.get(token) or chr(token - 3) for token in np.asarray(ids).tolist())


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def chat_of(template: Any, *, train_on: str = "assistant", tokenizer: Any = None, **options: bool) -> ChatEncoder:
    adds = {"add_bos": True, "add_eos": True, **options}
    tokenizer = ChatBytes() if tokenizer is None else tokenizer
    return make_encoder(Chat(template, train_on), tokenizer=tokenizer, read=read, **adds)


def trained(chat: Chat, conversation: Conversation) -> str:
    ids, mask = chat(conversation)
    return spelled(ids[mask])


def shards_of(folder: Path, conversations: list[Any], *, field: str = "jsonl:messages") -> list[str]:
    lines = [json.dumps({"id": 1, "messages": one}, ensure_ascii=False).encode() for one in conversations]
    return write_shards(folder, lines, field=field, documents_per_shard=30)


def dataset_of(shards: list[str], **arguments: Any) -> streampack.PackedDataset:
    options = {"field": "jsonl:messages", "num_lanes": 1, "epochs": 1, "shuffle": False, "chat": "phi3"}
    return streampack.PackedDataset(shards, ChatBytes(), **{"seq_len": 400, **options, **arguments})
