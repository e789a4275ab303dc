"""README and docs tell the truth: their code runs, their tables are what the code gives, links and tests exist."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import streampack
from streampack.testing import ByteTokenizer, write_shards

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {"README.md": README, **DOCS, "CONTRIBUTING.md": (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")}
FOLDERS = {"README.md": ROOT, "CONTRIBUTING.md": ROOT / ".github"} | dict.fromkeys(DOCS, ROOT / "docs")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a page's Python code defines, run from top to bottom in one namespace, in a folder of its own."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in blocks(text, "python"):
        exec(block, names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_no_table_is_cut_in_two(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert [table for table in tables if not re.match(r"\|.*\n\|[-:|\s]+\|\n", table)] == []


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 8192


# Without a process group torch says that it saves in a single process, which is meant here.
@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
def test_the_readmes_code_loads_batches_and_resumes_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(README, tmp_path, monkeypatch)
    dataset, loader = names["dataset"], names["loader"]
    assert isinstance(dataset, streampack.PackedDataset)
    assert isinstance(loader, streampack.PackedDataLoader)
    assert names["tokens"].shape == (4, 512)  # type: ignore[attr-defined]
    state = loader.state_dict()
    assert state["global_pack"] == 4 * (names["step"] + 1)  # type: ignore[operator]
    with loader, streampack.PackedDataLoader(dataset, 4, num_workers=0) as whole:
        batches = iter(whole)
        for _ in range(state["global_pack"] // 4):
            next(batches)
        np.testing.assert_array_equal(next(batches)["tokens"], next(iter(loader))["tokens"])


# webdataset leaves the files that it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_the_code_about_boundaries_packs_by_hand_and_from_webdataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run(DOCS["boundaries.md"], tmp_path, monkeypatch)
    texts = [f"text number {i}" for i in range(7)]
    urls = write_shards(tmp_path, texts, documents_per_shard=7)
    packs = list(names["packs_of"](urls, ByteTokenizer(), 16))  # type: ignore[operator]
    expected = list(streampack.pack([ByteTokenizer().encode(text) for text in texts], seq_len=16))
    assert [pack.tokens.tolist() for pack in packs] == [pack.tokens.tolist() for pack in expected]
    labels = torch.tensor([[1, 2, -100], [-100, 0, -100]])
    logits = torch.randn(2, 3, 5)
    batch = {"labels": labels, "num_targets": torch.tensor([2, 1])}
    loss = names["loss_of"](logits, batch)  # type: ignore[operator]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_the_table_of_boundaries_is_what_the_packer_gives() -> None:
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
    table = re.search(r"<!-- boundaries -->\n```text\n(.*?)\n```", DOCS["boundaries.md"], flags=re.DOTALL)
    assert table is not None
    assert table[1].splitlines() == expected


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (FOLDERS[page] / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    assert [name for name in DOCS if f"](docs/{name})" not in README] == []


@pytest.mark.parametrize("page", ["guarantees.md", "formats.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = [
        (path, name)
        for row in PAGES[page].splitlines()
        for path, rest in re.findall(r"\]\((\.\./tests/[\w/]+\.py)\)([^\[]*)", row)
        for name in re.findall(r"`(test_\w+)`", rest) or [""]
    ]
    assert named
    missing = [
        (path, name) for path, name in named if name and f"def {name}(" not in (ROOT / "docs" / path).read_text("utf-8")
    ]
    assert missing == []


def test_each_guarantee_names_a_test() -> None:
    rows = [row for row in DOCS["guarantees.md"].splitlines() if row.startswith("| ") and "tests |" not in row]
    assert rows
    assert [row for row in rows if "](../tests/" not in row] == []


def test_the_readmes_two_commands_use_what_ci_uses() -> None:
    commands = blocks(README, "bash")
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert commands[0].strip().split(" && ")[1] == "streampack demo"
    install, test = commands[1].strip().split(" && ")
    assert install.removeprefix("python -m pip install ") in ci
    assert f"check {test} <" in ci


def test_the_readme_says_what_each_dependency_is_for() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    needed = README.partition("## What it needs")[2]
    named = {re.split(r"[><=]", dependency)[0] for dependency in dependencies}
    assert {name for name in named if not re.search(rf"\b{name}\b", needed)} == set()


def test_the_readme_names_extras_and_modules_that_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"streampack\[(\w+)\]", README))
    assert named
    assert named - set(extras) == set()
    commands = [shlex.split(command) for command in re.findall(r"`((?:python|torchrun) [^`]+)`", README)]
    modules = [word for command in commands for word in command if word.startswith("streampack.")]
    assert len(modules) == 5
    assert [name for name in modules if find_spec(name) is None] == []
