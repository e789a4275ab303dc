"""What conversations say besides roles and contents: used, or refused by name; metadata is passed over."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chats import ChatBytes, chat_of, dataset_of, spelled, talk, trained

import streampack
from streampack.errors import ConfigError, RecordError
from streampack.testing import write_shards

JINJA = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls }}{% endif %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "add"}}


def weighted(*values: Any) -> list[dict[str, Any]]:
    """Turns of user and assistant, whose answers have these weights (None: no key)."""
    messages: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        messages += talk(("u", "q"), ("a", f"A{number}"))
        messages[-1] |= {} if value is None else {"weight": value}
    return messages


@pytest.mark.parametrize("template", ["phi3", "chatml", "llama2", JINJA])
@pytest.mark.parametrize(
    ("values", "train_on", "answers"),
    [
        ((0, 1, None), "assistant", [1, 2]),
        ((1.0, 0.0, 1), "assistant", [0, 2]),
        ((0, 0), "assistant", []),
        ((0, 1), "last_assistant", [1]),
        ((1, 0), "last_assistant", []),
    ],
)
def test_only_messages_of_weight_1_are_trained(
    template: str, values: tuple[Any, ...], train_on: str, answers: list[int]
) -> None:
    chat, conversation = chat_of(template, train_on=train_on), weighted(*values)
    text = trained(chat, conversation)
    assert [number for number in range(len(values)) if f"A{number}" in text] == answers
    plain = [{key: message[key] for key in ("role", "content")} for message in conversation]
    assert chat(conversation)[0].tolist() == chat(plain)[0].tolist(), "a weight changes no token"


@pytest.mark.parametrize("template", ["chatml", "llama2"])
def test_a_weight_holds_for_whoever_says_it(template: str) -> None:
    conversation = talk(("s", "rules"), ("u", "Q"), ("a", "A"))
    conversation[0] |= {"weight": 0}
    text = trained(chat_of(template, train_on="all"), conversation)
    assert ("rules" in text, "Q" in text, "A" in text) == (False, True, True)


@pytest.mark.parametrize("template", ["chatml", JINJA])
@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", True, [1]])
def test_any_other_weight_is_an_error(template: str, weight: Any) -> None:
    with pytest.raises(RecordError, match="message 1 has the weight .* it must be 0 .not trained. or 1"):
        chat_of(template)(weighted(weight))


@pytest.mark.parametrize("key", ["train", "masked", "loss", "weights", "mask", "is_masked", "trained"])
def test_a_weight_by_another_name_is_an_error(key: str) -> None:
    with pytest.raises(RecordError, match=f"message 0 has '{key}', which is not read here: say with weight"):
        chat_of("chatml")([{"role": "assistant", "content": "A", key: False}])


def test_a_weight_that_a_jinja_template_cannot_follow_is_an_error() -> None:
    one_block = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    assert trained(chat_of(one_block), weighted(1, 1)) == "qA0qA1"
    with pytest.raises(RecordError, match="message 1 has the weight 0, .* does not show where it is"):
        chat_of(one_block)(weighted(0, 1))
    said_by_a_user = [{"role": "user", "content": "q", "weight": 0}, *talk(("a", "A"))]
    assert trained(chat_of(JINJA), said_by_a_user) == "A<|im_end|>"
    with pytest.raises(RecordError, match="message 0 has the weight 0 and is not the assistant's"):
        chat_of(JINJA, train_on="all")(said_by_a_user)


@pytest.mark.parametrize("template", ["chatml", JINJA])
def test_what_a_model_should_see_of_a_message_is_not_dropped(template: str) -> None:
    for key, value in (
        ("name", "Ann"),
        ("reasoning_content", "hm"),
        ("thoughts", "hm"),
        ("image", "a.png"),
        ("attachments", ["a.txt"]),
        ("function_call", {"name": "f"}),
    ):
        with pytest.raises(RecordError, match=f"message 0 has {key}, which the chat template .*has no place for"):
            chat_of(template)([{"role": "user", "content": "q", key: value}])
    nothing = {"name": None, "tool_calls": [], "function_call": None, "refusal": ""}
    metadata = {"id": 7, "timestamp": "2024-01-01", "source": "web", "tool_call_id": "1", "lang": "en"}
    plain = talk(("u", "q"), ("a", "A"))
    chat, full = chat_of(template), [{**each, **nothing, **metadata} for each in plain]
    assert trained(chat, full) == trained(chat, plain) != ""


def test_a_jinja_template_uses_what_it_looks_at() -> None:
    call = [{"role": "assistant", "content": "A", "tool_calls": [{"name": "add"}]}]
    assert trained(chat_of(JINJA), call) == "A[{'name': 'add'}]<|im_end|>"
    whole = chat_of("{% for m in messages %}{{ m | tojson }}{% endfor %}", train_on="all")
    assert '"name": "Ann"' in spelled(whole([{"role": "user", "content": "q", "name": "Ann"}])[0])


# --- beside the messages


def test_tools_go_to_the_template_that_takes_them() -> None:
    text = spelled(chat_of(JINJA)(talk(("u", "q")), {"tools": [TOOL]})[0])
    assert text.startswith('[{"type": "function", "function": {"name": "add"}}]user:q')
    assert spelled(chat_of(JINJA)(talk(("u", "q")), {"tools": []})[0]) == "user:q<|im_end|>"
    moody = chat_of("{{ mood }}{{ messages[0].content }}", train_on="all")
    assert spelled(moody(talk(("u", "q")), {"chat_template_kwargs": {"mood": "kind"}})[0]) == "kindq"


def test_a_template_that_gives_tools_a_value_of_its_own_takes_them() -> None:
    llama = "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools | tojson }}"
    assert spelled(chat_of(llama, train_on="all")(talk(("u", "q")), {"tools": [TOOL]})[0]) == json.dumps([TOOL])


def test_what_transformers_always_defines_is_defined() -> None:
    template = "{{ tools is none }} {{ documents is none }} {{ functions is defined }}"
    assert spelled(chat_of(template, train_on="all")(talk(("u", "q")))[0]) == "True True False"


@pytest.mark.parametrize("template", ["chatml", "llama2", "{{ messages[0].content }}", lambda messages: []])
@pytest.mark.parametrize("key", ["tools", "functions", "documents", "system", "system_prompt", "image"])
def test_what_stands_beside_the_messages_and_has_no_place_is_an_error(template: Any, key: str) -> None:
    train_on = "all" if isinstance(template, str) else "assistant"
    with pytest.raises(RecordError, match=f"beside the messages there is '{key}', which the chat template .*no place"):
        chat_of(template, train_on=train_on)(talk(("u", "q")), {key: "be kind" if key == "system" else [TOOL]})


@pytest.mark.parametrize("template", ["chatml", JINJA])
@pytest.mark.parametrize("beside", [{"weight": 0}, {"weights": [0, 1]}, {"loss_mask": [0]}, {"train": False}])
def test_weights_beside_the_messages_are_an_error(template: str, beside: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="beside the messages there is '.*', which is not read there: weight, 0 or 1"):
        chat_of(template)(talk(("u", "q"), ("a", "A")), beside)
    plain = chat_of(template)(talk(("u", "q"), ("a", "A")))
    assert chat_of(template)(talk(("u", "q"), ("a", "A")), {"weight": 1})[1].tolist() == plain[1].tolist()


def test_tools_as_a_text_are_an_error() -> None:
    with pytest.raises(RecordError, match="the tools beside the messages are a string: decode it with a transform"):
        chat_of(JINJA)(talk(("u", "q")), {"tools": json.dumps([TOOL])})


def test_a_function_gets_what_it_has_parameters_for() -> None:
    def by_hand(messages: list[Any], tools: Any = None) -> list[tuple[str, bool]]:
        return [(f"{len(tools or [])} tools", True)]

    assert spelled(chat_of(by_hand)(talk(("u", "q")), {"tools": [TOOL]})[0]) == "1 tools"
    assert spelled(chat_of(by_hand)(talk(("u", "q")))[0]) == "0 tools"
    everything = chat_of(lambda messages, **besides: [(" ".join(besides), True)])
    assert spelled(everything(talk(("u", "q")), {"tools": [TOOL], "system": "S"})[0]) == "tools system"


def test_a_template_may_not_give_ids_that_no_vocabulary_has() -> None:
    for token in (310, -1, 2**40):
        with pytest.raises(RecordError, match=f"gave the token id {token}, which is not below 310"):
            chat_of(lambda messages, token=token: [(token, True)])(talk(("u", "q")))


def test_a_tokenizer_may_give_an_empty_list_of_ids() -> None:
    class Listed(ChatBytes):
        def encode(self, text: str) -> Any:
            return np.array(super().encode(text).tolist())  # of an empty list NumPy makes floats

    empty = talk(("u", "q"), ("a", ""))
    assert chat_of("llama2", tokenizer=Listed())(empty)[0].tolist() == chat_of("llama2")(empty)[0].tolist()


# --- in a dataset


def shard_of(folder: Path, *records: bytes) -> list[str]:
    return write_shards(folder, list(records), field="jsonl:messages")


MESSAGES = b'"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'


def test_values_that_are_not_used_may_be_anything_that_json_allows(tmp_path: Path) -> None:
    records = [b"{" + beside + b", " + MESSAGES + b"}" for beside in (b'"n": 1e999', b'"n": "\xe9"', b'"id": 1')]
    [pack] = dataset_of(shard_of(tmp_path, *records))
    assert pack["segment_ids"].max() == 3


def test_tools_beside_messages_are_a_bad_record_where_they_have_no_place(tmp_path: Path) -> None:
    with_tools = b'{"tools": ' + json.dumps([TOOL]).encode() + b", " + MESSAGES + b"}"
    metadata = b'{"source": "web", "tools": null, "functions": [], ' + MESSAGES + b"}"
    shards = shard_of(tmp_path, metadata, with_tools)
    with pytest.raises(RecordError, match="00000.tar, member '00000000': beside the messages there is 'tools'"):
        list(dataset_of(shards))
    with streampack.PackedDataLoader(dataset_of(shards, on_error="skip"), num_workers=0) as loader:
        [batch] = loader
        assert (batch["segment_ids"].max(), loader.stats()["bad_records"]) == (1, 1)
    [pack] = dataset_of(shards, chat=JINJA, seq_len=400)
    assert pack["segment_ids"].max() == 2
    assert "function" in spelled(pack["tokens"][pack["segment_ids"] == 2])


def test_what_stands_beside_an_object_on_the_path_to_the_messages_counts_too(tmp_path: Path) -> None:
    tools = json.dumps([TOOL]).encode()

    def first_pack(record: bytes, chat: Any) -> Any:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shards = write_shards(folder, [record], field="jsonl:data.messages")
        [pack] = dataset_of(shards, field="jsonl:data.messages", chat=chat)
        return spelled(pack["tokens"][pack["segment_ids"] == 1])

    above = b'{"id": 1, "tools": ' + tools + b', "data": {' + MESSAGES + b"}}"
    assert "function" in first_pack(above, JINJA)
    with pytest.raises(RecordError, match="beside the messages there is 'tools'"):
        first_pack(above, "chatml")
    same = b'{"tools": ' + tools + b', "data": {"tools": ' + tools + b", " + MESSAGES + b"}}"
    assert "function" in first_pack(same, JINJA)
    with pytest.raises(RecordError, match="'tools' stands at two levels of the path to the messages, with two values"):
        first_pack(b'{"tools": [{}]' + same[len(b'{"tools": ' + tools) :], JINJA)


def test_a_message_that_calls_a_tool_needs_no_content(tmp_path: Path) -> None:
    calls = b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"name": "add"}]}]}'
    [pack] = dataset_of(shard_of(tmp_path, calls), chat=JINJA.replace("{{ m.content }}", "{{ m.content or '' }}"))
    assert "[{'name': 'add'}]" in spelled(pack["tokens"][pack["segment_ids"] == 1])
    with pytest.raises(RecordError, match="message 0 has tool_calls, which the chat template 'phi3' has no place for"):
        list(dataset_of(shard_of(tmp_path, calls)))
    with pytest.raises(RecordError, match="the content of message 0 is null and not a string"):
        list(dataset_of(shard_of(tmp_path, calls.replace(b'[{"name": "add"}]', b"[]"))))


def test_a_transform_sees_what_stands_beside_the_messages(tmp_path: Path) -> None:
    def without(document: streampack.Document, rng: object) -> streampack.Document:
        assert document.context == {"system": "be kind"}
        first = {"role": "system", "content": document.context["system"]}
        return dataclasses.replace(document, messages=(first, *document.messages), context=None)

    record = b'{"system": "be kind", ' + MESSAGES + b"}"
    [pack] = dataset_of(shard_of(tmp_path, record), transform=without)
    assert "be kind" in spelled(pack["tokens"][pack["segment_ids"] == 1])


def test_an_id_of_a_chat_that_is_not_in_the_vocabulary_names_the_place(tmp_path: Path) -> None:
    assert ChatBytes.vocab_size == 310
    shards = shard_of(tmp_path, b"{" + MESSAGES + b"}")
    with pytest.raises(RecordError, match="00000.tar, member '00000000': .* the token id 500"):
        list(dataset_of(shards, chat=lambda messages: [(500, True)]))


# --- what a template writes


def test_what_looks_like_a_control_token_and_is_none_is_never_text_in_silence() -> None:
    """At once where each conversation has it, else for those that have it; in a message it is text as any other."""
    always = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    with pytest.raises(ConfigError, match=r"writes '<\|turn\|>', which is no control token .*give the tokenizer that"):
        chat_of(always, train_on="all")
    by_role = chat_of("{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}{% endfor %}", train_on="all")
    assert spelled(by_role(talk(("u", "<|turn|>"), ("a", "A")))[0]) == "<|user|><|turn|><|assistant|>A"
    with pytest.raises(RecordError, match=r"writes '<\|judge\|>', which is no control token"):
        by_role([{"role": "judge", "content": "q"}])


def test_a_null_content_is_none_to_a_template_and_never_the_word() -> None:
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}]
    careful = (
        "{% for m in messages %}{% if m.content is not none %}{{ m.content }}{% endif %}"
        "{% if m['content'] != none and m.content %}{{ m.content }}{% endif %}{{ m.tool_calls | tojson }}{% endfor %}"
    )
    assert spelled(chat_of(careful, train_on="all")(call)[0]) == '[{"name": "add"}]'
    whole = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert '"content": null' in spelled(chat_of(whole, train_on="all")(call)[0])
    for careless in ("{{ m.content }}", "{{ m.content | trim }}", "{{ '' ~ m.content }}", "{{ 'a' + m.content }}"):
        template = "{% for m in messages %}" + careless + "{{ m.tool_calls }}{% endfor %}"
        with pytest.raises(RecordError, match="the chat template refuses the conversation"):
            chat_of(template, train_on="all")(call)


# --- other ways to write a conversation


@pytest.mark.parametrize("field", ["json:messages", "json:conversations"])
@pytest.mark.parametrize(
    "conversation",
    [
        [
            {"role": "user", "content": [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "A"},
        ],
        [{"from": "human", "value": "one, two"}, {"from": "gpt", "value": "A"}],
        [{"from": "user", "value": "one, two"}, {"from": "assistant", "value": [{"type": "text", "text": "A"}]}],
    ],
)
def test_lists_of_texts_and_the_form_of_sharegpt_are_the_same_conversation(
    tmp_path: Path, field: str, conversation: list[dict[str, Any]]
) -> None:
    plain = talk(("u", "one, two"), ("a", "A"))
    given, expected = (
        dataset_of(write_shards(tmp_path / name, [each], field=field), field=field)
        for name, each in (("given", conversation), ("plain", plain))
    )
    np.testing.assert_array_equal(next(iter(given))["tokens"], next(iter(expected))["tokens"])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part 0 of the content of message 0"),
        ({"role": "user", "content": ["text"]}, "part 0 of the content of message 0 is 'a string' and not a text"),
        ({"role": "user", "content": [{"type": "text"}]}, "is 'text' and not a text"),
        ({"from": "bard", "value": "A"}, "message 0 is from 'bard'; known are human, user, gpt, "),
        ({"from": ["gpt"], "value": "A"}, r"message 0 is from \['gpt'\]; known are"),
        ({"from": "gpt", "value": 3}, "the content of message 0 is a number and not a string"),
    ],
)
def test_what_is_no_text_and_who_is_not_known_is_named(tmp_path: Path, message: dict[str, Any], text: str) -> None:
    path = tmp_path / "0.tar"
    data = json.dumps({"messages": [message]}).encode()
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(RecordError, match=text):
        next(iter(dataset_of([str(path)], field="json:messages")))
