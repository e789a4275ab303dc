"""The README tells the truth: its code runs, its tables are what the code gives, its links and tests are there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Linear

import streampack
from streampack.testing import ByteTokenizer, write_shards

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the README's Python code defines, run from top to bottom in one namespace."""
    namespace: dict[str, object] = {}
    for block in PYTHON:
        exec(block, namespace)
    return namespace


def test_the_first_example_stands_behind_eleven_batches(names: dict[str, object]) -> None:
    state = names["state"]
    assert isinstance(state, dict)
    assert state["global_pack"] == 11 * 4
    assert names["tokens"].shape == (4, 512)  # type: ignore[attr-defined]


def test_the_loss_of_the_readme_is_the_mean_over_targets(names: dict[str, object]) -> None:
    labels = torch.tensor([[1, 2, -100], [-100, 0, -100]])
    logits = torch.randn(2, 3, 5)
    batch = {"labels": labels, "num_targets": torch.tensor([2, 1])}
    loss = names["loss_of"](logits, batch)  # type: ignore[operator]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


# Without a process group torch says that it saves in a single process, which is meant here.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_the_checkpoint_code_of_the_readme_goes_on_where_it_saved(
    names: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = write_shards(tmp_path / "shards", [f"document {i} " * 20 for i in range(100)], documents_per_shard=30)

    def loader() -> streampack.PackedDataLoader:
        dataset = streampack.PackedDataset(shards, ByteTokenizer(), 64, num_lanes=4)
        return streampack.PackedDataLoader(dataset, 2, num_workers=0)

    model = Linear(2, 2)
    with loader() as first, loader() as second:
        iterator = iter(first)
        next(iterator)
        names["save"](1, model, first)  # type: ignore[operator]
        names["load"](1, model, second)  # type: ignore[operator]
        np.testing.assert_array_equal(next(iterator)["tokens"], next(iter(second))["tokens"])


# webdataset leaves the files that it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_a_webdataset_pipeline_is_a_source_of_packs(names: dict[str, object], tmp_path: Path) -> None:
    texts = [f"text number {i}" for i in range(7)]
    urls = write_shards(tmp_path, texts, documents_per_shard=7)
    packs = list(names["packs_of"](urls, ByteTokenizer(), 16))  # type: ignore[operator]
    expected = list(streampack.pack([ByteTokenizer().encode(text) for text in texts], seq_len=16))
    assert [pack.tokens.tolist() for pack in packs] == [pack.tokens.tolist() for pack in expected]


def test_the_boundary_table_is_what_the_packer_gives() -> None:
    words = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "a", 4: "b", 5: "c", 9: "9", -100: "."}
    documents = [[1, 3, 4, 2], [1, 5, 2]]
    policies = {
        "keep": "keep",
        "mask (default)": "mask",
        "mask_bos_target": "mask_bos_target",
        "mask_eos_input": "mask_eos_input",
        "ReplaceBoundary(9)": streampack.ReplaceBoundary(9),
        "trim": "trim",
    }
    packs = {
        name: next(streampack.pack(documents, seq_len=8, boundary=policy, bos_id=1, eos_id=2))
        for name, policy in policies.items()
    }

    def line(title: str, ids: np.ndarray) -> str:
        return f"{title:18}" + "".join(f"{words[token]:>6}" for token in ids.tolist())

    trim = packs.pop("trim")
    expected = [line("tokens", packs["keep"].tokens), ""]
    expected += [line(name, pack.labels) for name, pack in packs.items()]
    expected += ["", line("trim: tokens", trim.tokens), line("      labels", trim.labels)]
    table = re.search(r"<!-- boundaries -->\n```text\n(.*?)\n```", README, flags=re.DOTALL)
    assert table is not None
    assert table[1].splitlines() == expected


def test_every_file_that_the_readme_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_test_that_the_readme_names_is_there() -> None:
    rows = [row for row in README.splitlines() if row.startswith("|") and "](tests/" in row]
    assert rows
    missing = []
    for row in rows:
        for path, rest in re.findall(r"\]\((tests/[\w/]+\.py)\)([^\[]*)", row):
            source = (ROOT / path).read_text("utf-8")
            missing += [name for name in re.findall(r"`(test_\w+)`", rest) if f"def {name}(" not in source]
    assert missing == []


def test_the_readmes_two_commands_use_the_constraints_that_ci_uses() -> None:
    commands = re.findall(r"```bash\n(.*?)\n```", README, flags=re.DOTALL)
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert commands[0].split(" && ")[1] == "streampack demo"
    install, test = commands[1].split(" && ")
    assert install.removeprefix("python -m pip install ") in ci
    assert f"check {test} <" in ci
