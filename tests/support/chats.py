"""Fifty conversations, ordinary and odd, for the tests of chat templates."""

import itertools
import random

Conversation = list[dict[str, str]]


def talk(*messages: tuple[str, str]) -> Conversation:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": content} for role, content in messages]


_TEXTS = ["Hello!", "What is\n2 + 2?", "  4, of course. ", "naïve café", "日本語のテキスト"]
_TEXTS += ["🙂👩‍👩‍👧", "\ttab\nline\n\n", "a" * 70]

CONVERSATIONS: list[Conversation] = [
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
_choose = random.Random(7)
for _turns in itertools.cycle((1, 2, 3)):
    if len(CONVERSATIONS) == 50:
        break
    _made = [("s", _choose.choice(_TEXTS))] if _choose.random() < 0.4 else []
    for _ in range(_turns):
        _made += [("u", _choose.choice(_TEXTS)), ("a", _choose.choice(_TEXTS))]
    CONVERSATIONS.append(talk(*_made))
