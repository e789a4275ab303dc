"""`streampack peek` on real shards: what it shows is what the run gives; and what all commands share."""

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from support.thorough import nightly
from typer.testing import CliRunner, Result

from streampack import HoldOut, PackedDataLoader, PackedDataset
from streampack.cli import app
from streampack.examples.make_data import DATA
from streampack.testing import write_shards

SHARDS, MODEL = str(DATA / "devil-*.tar*"), str(DATA / "devil.model")
DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
EDGE = re.compile(r"row (\d+): input (.+?) \(document (\d+), key (\S+)\) → label (.+?) \(([^()]*)\)")


def run(*args: str, **env: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", **env}).invoke(app, ["peek", *args])


def peek(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


def texts() -> Iterator[tuple[str, str]]:
    """(key, text) of every plain demo shard, by the standard library."""
    for path in sorted(DATA.glob("devil-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name.removesuffix(".txt"), file.read().decode()


# -- what is shown is the run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["wrap", "best_fit", *nightly(["next_fit"])])
def test_the_packs_are_those_of_the_run_in_the_global_order(packing: str) -> None:
    options = ["--num-lanes", "12", "--seq-len", "128", "--packing", packing, "--seed", "5"]
    shown = peek(SHARDS, "-t", MODEL, *options, "--num", "30")["packs"]
    run = PackedDataset(SHARDS, MODEL, 128, num_lanes=12, packing=packing, seed=5, epochs=1)
    assert [pack["global_pack"] for pack in shown] == list(range(30))
    for pack, item in zip(shown, islice(run, 30), strict=True):
        assert {name: item[name].tolist() for name in ("tokens", "labels", "position_ids", "segment_ids")} == {
            name: pack[name] for name in ("tokens", "labels", "position_ids", "segment_ids")
        }


@pytest.mark.parametrize("boundary", ["mask", "trim"])
def test_a_piece_that_best_fit_cuts_off_a_document_goes_on_in_another_pack(boundary: str) -> None:
    options = ["--packing", "best_fit", "--boundary", boundary, "--num-lanes", "4", "--seq-len", "64", "-n", "40"]
    packs = peek(SHARDS, "-t", MODEL, *options)["packs"]
    segments = [segment for pack in packs for segment in pack["segments"]]
    going_on = [segment for segment in segments if segment["goes_on"]]
    assert going_on
    for segment in going_on:
        assert (segment["num_rows"], segment["edge"]["reason"]) == (64, "its next token, in the next pack")
    others = {segment["edge"]["reason"] for segment in segments if not segment["goes_on"]}
    assert others == {"masked" if boundary == "mask" else "the document's last token"}


def test_segments_name_the_documents_that_their_tokens_are_of() -> None:
    expected, model = dict(texts()), sentencepiece.SentencePieceProcessor(model_file=MODEL)
    found: dict[str, list[int]] = {}
    whole = set()
    for pack in peek(SHARDS, "-t", MODEL, "--num-lanes", "4", "--lane", "2", "--seq-len", "64", "-n", "40")["packs"]:
        row = 0
        for segment in pack["segments"]:
            assert segment["first_row"] == row
            rows = found.setdefault(segment["key"], [])
            if segment["document_row"] == len(rows):  # from its start on
                rows += pack["tokens"][row : row + segment["num_rows"]]
                whole |= set() if segment["goes_on"] else {segment["key"]}
            row += segment["num_rows"]
        assert row == pack["num_tokens"]
    assert len(whole) > 15
    for key in whole:
        assert found[key] == [1, *model.encode(expected[key]), 2], key


@pytest.mark.parametrize(
    ("boundary", "input_", "label", "reason"),
    [
        ("mask", 2, -100, "masked"),
        ("keep", 2, 1, "the next document's first token"),
        ("trim", None, 2, "the document's last token"),
        ("replace:7", 2, 7, "replaced"),
        ("mask_bos_target", 2, -100, "masked"),
    ],
)
def test_each_row_where_documents_meet_says_its_label_and_why(
    boundary: str, input_: int | None, label: int, reason: str
) -> None:
    (pack,) = peek(SHARDS, "-t", MODEL, "--boundary", boundary, "-n", "1")["packs"]
    *inner, last = pack["segments"]
    assert inner and last["goes_on"]
    for segment in inner:
        edge = segment["edge"]
        assert (edge["label"], edge["masked"], edge["reason"]) == (label, label == -100, reason)
        assert input_ in (edge["input"], None)
        assert edge["row"] == segment["first_row"] + segment["num_rows"] - 1
        assert pack["labels"][edge["row"]] == label
    assert last["edge"]["label"] == pack["labels"][-1] != -100
    assert last["edge"]["reason"] == "its next token, in the next pack"


def test_a_lane_and_a_skip_lead_to_one_global_pack() -> None:
    options = [SHARDS, "-t", MODEL, "--num-lanes", "12", "--seq-len", "64"]
    (by_lane,) = peek(*options, "--lane", "3", "--skip", "2", "-n", "1")["packs"]
    (by_skip,) = peek(*options, "--skip", "27", "-n", "1")["packs"]
    assert by_lane == by_skip
    assert (by_lane["global_pack"], by_lane["lane"], by_lane["lane_pack"]) == (27, 3, 2)


def test_lanes_that_have_ended_are_left_out_and_the_epoch_ends(tmp_path: Path) -> None:
    long, short = " ".join(map(str, range(200))), "short"
    write_shards(tmp_path, [long, short], documents_per_shard=1, compression="gz")
    shown = peek(str(tmp_path), "-t", MODEL, "--num-lanes", "2", "--listed", "--seq-len", "64", "-n", "99")["packs"]
    lanes = [pack["lane"] for pack in shown]
    assert lanes[:3] == [0, 1, 0]
    assert lanes.count(1) == 1
    assert [pack["global_pack"] for pack in shown] == [0, 1, *range(2, 2 * lanes.count(0), 2)]
    assert shown[1]["num_padding"] > 0


def test_a_config_file_in_the_place_of_shards_shows_its_run_and_options_change_it() -> None:
    shown = peek(DEMO, "-n", "1")
    assert (shown["seq_len"], shown["num_lanes"], len(shown["packs"][0]["tokens"])) == (512, 12, 512)
    assert (
        peek(DEMO, "-n", "1", "--seq-len", "32", "--boundary", "keep")["packs"][0]["tokens"]
        == (shown["packs"][0]["tokens"][:32])
    )


# -- how it looks ----------------------------------------------------------------------------------------------------


def test_without_colour_every_boundary_and_mask_is_visible() -> None:
    result = run(SHARDS, "-t", MODEL, "-n", "2")
    packs = peek(SHARDS, "-t", MODEL, "-n", "2")["packs"]
    assert "\x1b" not in result.stdout
    edges = [segment for pack in packs for segment in pack["segments"]]
    lines = EDGE.findall(result.stdout)
    assert [(int(row), int(document), key) for row, _, document, key, _, _ in lines] == [
        (segment["edge"]["row"], segment["document"], segment["key"]) for segment in edges
    ]
    masked = sum(segment["edge"]["masked"] for segment in edges)
    assert masked == result.stdout.count("→ label -100 (masked)") == result.stdout.count("⟨</s>⟩") > 0
    assert "⟨row⟩ masked: its label is -100" in result.stdout


def test_colour_adds_nothing_but_colour_and_alternates() -> None:
    plain = run(SHARDS, "-t", MODEL).stdout
    coloured = run(SHARDS, "-t", MODEL, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    bars = re.findall(r"\x1b\[(\d+)m┃ \x1b\[0m\x1b\[1;\d+mdocument (\d+)", coloured)
    assert {(int(document) % 2, colour) for colour, document in bars} == {(1, "36"), (0, "33")}
    assert "⟨\x1b[0m\x1b[2;4;36m</s>\x1b[0m" in coloured  # dim and underlined, in the document's colour


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_it_fits_any_terminal(columns: int) -> None:
    shown = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["peek", SHARDS, "-t", MODEL]).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert shown.count("→ label") == len(EDGE.findall(" ".join(shown.split()))) > 3


def test_padding_is_counted_and_drawn() -> None:
    result = run(SHARDS, "-t", MODEL, "-n", "1", "--packing", "next_fit")
    (pack,) = peek(SHARDS, "-t", MODEL, "-n", "1", "--packing", "next_fit")["packs"]
    assert pack["num_padding"] > 0
    first = pack["num_tokens"]
    assert f"rows {first}-255  padding  ░░░ {256 - first} times <pad>, label -100, segment 0" in result.stdout


def test_tokens_are_shown_as_their_text() -> None:
    options = [str(DATA / "devil-00001.tar"), "-t", MODEL, "-n", "1", "--seq-len", "512"]
    shown = run(*options).stdout.replace("┃ ", "").replace("↵\n", "\n")
    for _, text in islice((pair for pair in texts() if pair[0].startswith(("0150", "0151"))), 2):
        assert f"<s>{text}⟨</s>⟩" in shown
    assert re.search(r"input </s> \(document 1, key 0150-\S+\) → label -100 \(masked\)", shown)
    (pack,) = peek(*options)["packs"]
    assert pack["pieces"][0] == "<s>"
    assert pack["segments"][0]["edge"]["input_text"] == "</s>"


def test_a_document_cannot_steer_the_terminal(tmp_path: Path) -> None:
    write_shards(tmp_path, ["a\x1b[2J\x07[bold]b\u202ec 漢🙂 </s>"])
    shown = run(str(tmp_path), "-t", MODEL).stdout
    assert "a\\x1b[2J\\x07[bold]b\\u202ec 漢🙂 </s>" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_masked_rows_inside_a_document_are_marked_as_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt_of_three.py").write_text(
        "import dataclasses, numpy as np\n"
        "def hide(document, rng):\n"
        "    return dataclasses.replace(document, loss_mask=np.arange(len(document.tokens)) >= 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_shards(tmp_path / "data", [[11, 12, 13, 14, 15], [21, 22, 23, 24]], field="npy")
    (tmp_path / "run.yaml").write_text(
        "dataset: {data: ./data/, tokenizer: null, field: npy, add_bos: false, add_eos: false, seq_len: 16, "
        "shuffle: false, transform: prompt_of_three:hide, pad_id: 0}\n"
    )
    shown = run(str(tmp_path / "run.yaml")).stdout
    # Token i is the target of row i - 1: rows 0 and 1 of each document have no label.
    assert "┃ ⟨11 12⟩ 13 14 ⟨15⟩\n" in shown
    assert "┃ ⟨21 22⟩ 23 ⟨24⟩\n" in shown
    assert "16 rows: 3 targets, 6 masked, 7 padding; 2 documents" in shown


# -- errors, and what all commands share -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere-*.tar", "-t", MODEL], "nothing matches 'nowhere-*.tar'"),
        ([SHARDS], "--tokenizer (-t) is missing"),
        ([SHARDS, "-t", MODEL, "--boundary", "masc"], 'did you mean "mask"?'),
        ([SHARDS, "-t", MODEL, "--lane", "7", "--num-lanes", "6"], "--lane 7: there are 6 lanes, 0 to 5"),
        ([SHARDS, "-t", MODEL, "--skip", "9999"], "an epoch has 522 packs on 1 lane, and --skip is 9,999"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_1(args: list[str], message: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_debug_anywhere_gives_the_error_itself() -> None:
    result = run("nowhere-*.tar", "-t", MODEL, "--debug")
    assert type(result.exception).__name__ == "ShardNotFoundError"


@pytest.mark.filterwarnings("default")  # as outside of tests
def test_a_warning_is_a_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"dataset: {{data: {SHARDS!r}, tokenizer: {MODEL!r}, packing: {{kind: wrap, overflow: drop}}, seq_len: 64}}\n"
    )
    result = run(str(tmp_path / "run.yaml"), "-n", "1")
    assert result.exit_code == 0
    assert result.stderr == (
        'warning: overflow="drop" does nothing under packing="wrap", which cuts documents every seq_len.\n'
    )


def test_the_module_runs_as_a_program_and_help_loads_no_command() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['streampack', '--help']\n"
        "try: runpy.run_module('streampack.cli', run_name='__main__')\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sorted(name for name in sys.modules if name.startswith('streampack.cli.')))\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for name in ("peek", "plan", "count", "demo"):
        assert re.search(rf"^│ {name} ", output, re.MULTILINE)
    assert output.splitlines()[-2:] == ["0", "['streampack.cli.console']"]


def test_the_program_fails_with_a_message_and_no_traceback() -> None:
    command = [sys.executable, "-m", "streampack.cli", "peek", SHARDS, "-t", __file__]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith(f"error: {__file__}: not a SentencePiece model, tokenizer.json or tekken.json")
    assert bad.stderr.count("\n") == 1


def test_chats_are_shown_with_what_is_trained(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An automaton."}]
    shards = write_shards(tmp_path, [talk] * 4, field="jsonl:messages")
    chats = ["-t", MODEL, "--field", "jsonl:messages", "--chat", "phi3", "--seq-len", "64"]
    [pack] = peek(*shards, *chats, "--num", "1")["packs"]
    run = PackedDataset(shards, MODEL, 64, field="jsonl:messages", chat="phi3", num_lanes=1)
    assert pack["labels"] == next(iter(run))["labels"].tolist()
    everything = peek(*shards, *chats, "--train-on", "all", "--num", "1")["packs"][0]
    assert everything["tokens"] == pack["tokens"]
    assert everything["labels"].count(-100) < pack["labels"].count(-100)
    assert "32007" in run_output(*shards, *chats)  # <|end|>, which is no piece of the model


def marked(text: str, begin: str, end: str) -> list[str]:
    return re.findall(f"{begin}(.*?){end}", re.sub(r"\n┃ ", "", text), re.DOTALL)


TALK = [
    {"role": "user", "content": "What is a cat?"},
    {"role": "assistant", "content": "An automaton."},
    {"role": "user", "content": "And a dog?"},
    {"role": "assistant", "content": "A subsidiary deity."},
]
CHATS = ["-t", MODEL, "--field", "jsonl:messages", "--chat", "llama2", "--seq-len", "128", "--num", "1"]


def test_targets_are_what_is_trained_the_eos_of_a_reply_too(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [TALK], field="jsonl:messages")
    shown = run_output(*shards, *CHATS, "--view", "targets")
    assert marked(shown, "⟦", "⟧") == ["An automaton.</s>", "A subsidiary deity.</s>", "token"]
    assert "</s>⟩" in run_output(*shards, *CHATS)  # by rows: the row of EOS itself has no label
    [pack] = peek(*shards, *CHATS)["packs"]
    trained = sum(label != -100 for label in pack["labels"])
    assert trained == pack["num_targets"] > 10


@pytest.mark.parametrize(
    ("boundary", "targets"),
    [("mask", ["a b c</s>"]), ("trim", ["a b c→</s>"]), ("keep", ["a b c</s>", "<s>"])],
)
def test_targets_at_a_boundary(boundary: str, targets: list[str], tmp_path: Path) -> None:
    shards = write_shards(tmp_path, ["a b c", "a b c"])
    shown = run_output(*shards, "-t", MODEL, "--listed", "--boundary", boundary, "--view", "targets", "-n", "1")
    first = shown.split("document 2")[0] if boundary != "keep" else shown
    found = [each.strip() for each in marked(first, "⟦", "⟧")]
    assert found[0] == targets[0].replace("→", "")
    assert ("⟦<s>" in shown) is (boundary == "keep")


def test_roles_have_their_own_colours_and_packs_stay_the_same(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [TALK] * 3, field="jsonl:messages")
    [pack] = peek(*shards, *CHATS)["packs"]
    pieces, roles = pack["pieces"], pack["roles"]
    of_assistant = "".join(piece for piece, role in zip(pieces, roles, strict=True) if role == "assistant")
    assert of_assistant.replace("▁", " ").strip() == "An automaton.</s>A subsidiary deity.</s>" * 2
    assert set(roles[: pack["num_tokens"]]) == {"user", "assistant"}
    dataset = PackedDataset(shards, MODEL, 128, field="jsonl:messages", chat="llama2", num_lanes=1)
    assert pack["tokens"] == next(iter(dataset))["tokens"].tolist()
    coloured = CliRunner(env={"COLUMNS": "100", "FORCE_COLOR": "1", "TERM": "xterm-256color"})
    shown = coloured.invoke(app, ["peek", *shards, *CHATS]).stdout
    assert "\x1b[32mAn automaton." in shown
    assert "messages of \x1b[34muser\x1b[0m \x1b[32massistant\x1b[0m" in shown


def test_a_template_that_does_not_say_whose_message_it_is_marks_the_assistant_only(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    shards = write_shards(tmp_path / "data", [TALK], field="jsonl:messages")
    options = [*CHATS[:4], "--chat", str(tmp_path / "template.jinja"), *CHATS[6:]]
    assert set(peek(*shards, *options)["packs"][0]["roles"]) == {"", "assistant"}


# -- which packs -----------------------------------------------------------------------------------------------------


def test_a_step_and_a_state_lead_to_the_packs_of_the_run(tmp_path: Path) -> None:
    first = tmp_path / "state.json"
    with PackedDataLoader.from_config(DEMO) as loader:
        batches = list(islice(loader, 7))
        torch.save(loader.state_dict(), first)
    step = peek(DEMO, "--step", "6", "--global-batch", "4", "-n", "4")["packs"]
    assert [pack["tokens"] for pack in step] == batches[6]["tokens"].tolist()
    assert [pack["global_pack"] for pack in step] == [24, 25, 26, 27]
    (after,) = peek(DEMO, "--state", str(first), "-n", "1")["packs"]
    assert (after["global_pack"], after) == (28, peek(DEMO, "--skip", "28", "-n", "1")["packs"][0])
    (of_lane,) = peek(DEMO, "--state", str(first), "--lane", "1", "-n", "1")["packs"]
    assert (of_lane["global_pack"], of_lane["lane"]) == (37, 1)
    assert "lanes cannot go back" in run(DEMO, "--state", str(first), "--step", "2", "--global-batch", "4").stderr
    assert "--step needs --global-batch" in run(DEMO, "--step", "2").stderr


@pytest.mark.parametrize("by", ["document", "block"])
def test_part_val_shows_the_packs_of_the_validation_set(by: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "data", [f"words of document {i} " * 40 for i in range(400)], documents_per_shard=100)
    (tmp_path / "run.yaml").write_text(
        f"dataset: {{data: ./data/, tokenizer: {MODEL!r}, seq_len: 64, num_packs: 500, "
        f"hold_out: {{part: train, fraction: 0.4, by: {by}}}}}\nloader: {{batch_size: 4, num_workers: 0}}\n"
    )
    shown = peek(str(tmp_path / "run.yaml"), "--part", "val", "-n", "6", "--skip", "2")["packs"]
    dataset = PackedDataset(
        [str(tmp_path / "data")], MODEL, 64, hold_out=HoldOut("val", 0.4, by=by)  # type: ignore[arg-type]
    )
    with PackedDataLoader(dataset, 1, num_workers=0) as loader:
        packs = [batch["tokens"][0].tolist() for batch in islice(loader, 8)]
    assert [pack["tokens"] for pack in shown] == packs[2:]
    assert [pack["global_pack"] for pack in shown] == [2, 3, 4, 5, 6, 7]
    assert "nothing is held out here" in run(DEMO, "--part", "val").stderr
    assert "leave them out" in run(str(tmp_path / "run.yaml"), "--part", "val", "--step", "1").stderr


def run_output(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.output
