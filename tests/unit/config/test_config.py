"""Config files: what they say arrives, what they should not say is refused with file, line and key."""

import inspect
import itertools
import os
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import streampack
from streampack import Packing, Shuffle, Source, Stage
from streampack.config.file import SECTIONS, Config, load_config
from streampack.errors import ConfigError
from streampack.packing.options import PackingKind
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.storage.options import RetryPolicy, Storage

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
MINIMAL = "dataset:\n  data: a.tar\n  tokenizer: t.model\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, "utf-8")
    return path


def loaded(folder: Path, text: str) -> Config:
    return load_config(written(folder, text))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_that_ships_loads_and_fits_the_constructors(path: Path) -> None:
    config = load_config(path)
    inspect.signature(streampack.PackedDataset).bind(**config.dataset_arguments())
    inspect.signature(streampack.PackedDataLoader).bind(None, **config.loader_arguments())


def test_three_configs_ship() -> None:
    assert [path.stem for path in CONFIGS] == ["demo", "finetune-jsonl", "pretrain-mix", "pretrain-s3"]


def test_fields_are_the_keyword_arguments_of_the_constructors() -> None:
    """But for what only a program can say: ranks, groups, and the dataset object itself."""
    dataset = set(inspect.signature(streampack.PackedDataset).parameters)
    loader = set(inspect.signature(streampack.PackedDataLoader).parameters)
    assert set(SECTIONS["dataset"].__struct_fields__) == dataset | {"sources"}
    assert set(SECTIONS["loader"].__struct_fields__) == loader - {
        "dataset",
        "dp_rank",
        "dp_size",
        "device_mesh",
        "process_group",
    }


def test_the_ranks_of_a_loader_from_a_file_can_be_compared(tmp_path: Path) -> None:
    assert loaded(tmp_path, MINIMAL + "loader:\n  verify_every: 500\n").loader_arguments() == {"verify_every": 500}
    assert loaded(tmp_path, MINIMAL + "loader:\n  verify_every: null\n").loader_arguments() == {"verify_every": None}
    with pytest.raises(ConfigError, match=r"`loader.verify_every`: expected a whole number or null, found 'often'"):
        loaded(tmp_path, MINIMAL + "loader:\n  verify_every: often\n")


def test_only_what_the_file_sets_becomes_an_argument(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL + "  epochs: null\n  add_bos: false\nloader:\n  batch_size: 3\n")
    assert config.dataset_arguments() == {"data": "a.tar", "tokenizer": "t.model", "epochs": None, "add_bos": False}
    assert config.loader_arguments() == {"batch_size": 3}
    assert loaded(tmp_path, MINIMAL).loader_arguments() == {}


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    config = loaded(tmp_path, "dataset:\n  data: a.tar\n  tokenizer: null\n  field: npy\n")
    assert config.dataset_arguments() == {"data": "a.tar", "tokenizer": None, "field": "npy"}


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL)
    with pytest.raises(FrozenInstanceError):
        config.dataset = {}  # type: ignore[misc]


def test_boundary_is_a_name_or_a_replacement(tmp_path: Path) -> None:
    assert loaded(tmp_path, MINIMAL + "  boundary: trim\n").dataset_arguments()["boundary"] == BoundaryPolicy.TRIM
    replaced = loaded(tmp_path, MINIMAL + "  boundary: {replace: 7}\n").dataset_arguments()["boundary"]
    assert replaced == ReplaceBoundary(7)


def test_retry_becomes_a_policy_with_the_fields_given(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL + "  storage: {retry: {budget_s: 7, max_tries: null}}\n")
    retry = RetryPolicy(budget_s=7.0, max_tries=None)
    assert config.dataset_arguments()["storage"] == Storage(retry=retry)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("packing: next_fit", {"packing": "next_fit"}),
        ("packing: best_fit", {"packing": "best_fit"}),
        ("packing: {kind: best_fit, window: 16}", {"packing": streampack.Packing("best_fit", window=16)}),
        (
            "packing: {kind: next_fit, overflow: truncate}",
            {"packing": streampack.Packing("next_fit", overflow="truncate")},
        ),
        ("chat: phi3", {"chat": "phi3"}),
        ("chat: {template: phi3, train_on: all}", {"chat": streampack.Chat("phi3", train_on="all")}),
        ("hold_out: {part: val, fraction: 0.1}", {"hold_out": streampack.HoldOut("val", 0.1)}),
        ("hold_out: null", {"hold_out": None}),
        ("limits: {document_bytes: 1KiB}", {"limits": streampack.Limits(document_bytes=1024)}),
        ("storage: {cache_dir: /x, cache_bytes: 1GiB}", {"storage": Storage(cache_dir="/x", cache_bytes=2**30)}),
        ("shuffle: shards", {"shuffle": "shards"}),
        ("shuffle: {block_bytes: 64KiB, window: 16}", {"shuffle": Shuffle(block_bytes=65536, window=16)}),
        ("max_bad: 7", {"max_bad": 7}),
        ("max_bad: 0.5", {"max_bad": 0.5}),
    ],
)
def test_an_option_record_is_a_mapping_of_its_fields_or_its_shorthand(
    tmp_path: Path, text: str, expected: dict[str, object]
) -> None:
    arguments = loaded(tmp_path, MINIMAL + f"  {text}\n").dataset_arguments()
    found = {name: value for name, value in arguments.items() if name not in ("data", "tokenizer")}
    assert found == expected
    assert [type(value) for value in found.values()] in ([PackingKind], [type(value) for value in expected.values()])


def test_paths_in_records_are_relative_to_the_file(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL + "  chat: {template: ./t.json}\n  storage: {cache_dir: ../cache}\n")
    assert config.dataset["chat"] == streampack.Chat(f"{tmp_path}/t.json")
    assert config.dataset["storage"].cache_dir == f"{tmp_path.parent}/cache"
    assert loaded(tmp_path, MINIMAL + "  chat: ./t.json\n").dataset["chat"] == f"{tmp_path}/t.json"


def test_a_transform_is_imported_when_asked_for(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL + '  transform: "os.path:basename"\n  transform_version: "1"\n')
    assert config.dataset["transform"].name == "os.path:basename"
    assert config.dataset_arguments()["transform"]("a/b") == "b"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("os.path:no_such", "no attribute 'no_such'"),
        ("os.path", "is <module "),  # no function named
        (":f", "cannot be imported"),
        ("os:sep", r"'os:sep' is '/' \(str\)"),
    ],
)
def test_a_transform_that_cannot_be_imported_says_why(tmp_path: Path, name: str, problem: str) -> None:
    config = loaded(tmp_path, MINIMAL + f'  transform: "{name}"\n')
    with pytest.raises(ConfigError, match=f"`dataset.transform`.*{problem}"):
        config.dataset_arguments()


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("4_096", 4096),
        ("512MiB", 512 * 2**20),
        ("8MB", 8_000_000),
        ("8 MB", 8_000_000),
        ("1.5GiB", 3 * 2**29),
        ("64KiB", 2**16),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_numbers_or_have_a_unit(tmp_path: Path, text: str, num_bytes: int) -> None:
    config = loaded(tmp_path, MINIMAL + f"  limits: {{buffer_bytes: {text}}}\nloader:\n  prefetch_bytes: {text}\n")
    assert config.dataset["limits"].buffer_bytes == config.loader["prefetch_bytes"] == num_bytes


@pytest.mark.parametrize("text", ["lots", "512M", "MiB", "-8MB", "8mb", "1e3MB"])
def test_a_size_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"run.yaml:5: `dataset.limits.buffer_bytes`: must be .* 512MiB .*found '{text}'"
    ):
        loaded(tmp_path, MINIMAL + f"  limits:\n    buffer_bytes: {text}\n")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("./a/{0..3}.tar", "{folder}/a/{0..3}.tar"),
        ("../a.tar", "{parent}/a.tar"),
        ("@./list.jsonl", "@{folder}/list.jsonl"),
        ("a.tar", "a.tar"),  # of the working directory, as everywhere else
        ("/data/a.tar", "/data/a.tar"),
        ("s3://b/../a.tar", "s3://b/../a.tar"),
        ("@s3://b/list.jsonl", "@s3://b/list.jsonl"),
        ("$HOME/a.tar", "$HOME/a.tar"),  # never expanded
        ("~/a.tar", "~/a.tar"),
        ("package://streampack.examples/data/a.tar", "{package}/examples/data/a.tar"),
    ],
)
def test_only_paths_with_a_leading_dot_or_package_are_resolved(tmp_path: Path, given: str, expected: str) -> None:
    expected = (
        expected.replace("{folder}", str(tmp_path))
        .replace("{parent}", str(tmp_path.parent))
        .replace("{package}", str(Path(streampack.__file__).parent))
    )
    config = loaded(tmp_path, f'dataset:\n  data: ["{given}", b.tar]\n  tokenizer: "{given}"\n')
    assert config.dataset["data"] == [expected, "b.tar"]
    assert config.dataset["tokenizer"] == expected


def test_a_package_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.yaml:3: `dataset.tokenizer`: package://nowhere_pkg/x: there is no"):
        loaded(tmp_path, "dataset:\n  data: a.tar\n  tokenizer: package://nowhere_pkg/x\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # unknown keys
        (MINIMAL + "  seqlen: 8\n", r"run.yaml:4: unknown key `seqlen` in `dataset`: did you mean `seq_len`\?"),
        (
            MINIMAL + "  batch_size: 8\n",
            r"run.yaml:4: unknown key `batch_size` in `dataset`: it belongs in the section `loader`",
        ),
        (
            MINIMAL + "loader:\n  xyzzy: 1\n",
            "run.yaml:5: unknown key `xyzzy` in `loader`: known are batch_size, num_workers",
        ),
        (
            MINIMAL + "loaders: {}\n",
            r"run.yaml:4: unknown key `loaders` at the top of the file: did you mean `loader`\?",
        ),
        (
            MINIMAL + "seed: 1\n",
            "run.yaml:4: unknown key `seed` at the top of the file: it belongs in the section `dataset`",
        ),
        (MINIMAL + "  7: 1\n", "run.yaml:4: unknown key `7` in `dataset`"),
        (
            MINIMAL + "  buffer_bytes: 1\n",
            "run.yaml:4: unknown key `buffer_bytes` in `dataset`: it belongs in the section `dataset.limits`",
        ),
        (
            MINIMAL + "  limits: {max_document_bytes: 1}\n",
            r"unknown key `max_document_bytes` in `dataset.limits`: did you mean `document_bytes`\?",
        ),
        # records
        (MINIMAL + "  limits: {document_bytes: 0}\n", "run.yaml:4: `dataset.limits`: limits.document_bytes=0 must be"),
        (MINIMAL + "  limits:\n", "`dataset.limits` must be a mapping with keys of document_bytes, buffer_bytes"),
        (MINIMAL + "  packing: {overflow: drop}\n", "run.yaml:4: `dataset.packing.kind` must be given"),
        (MINIMAL + "  packing: best\n", "`dataset.packing`: expected a mapping of Packing's fields or wrap or next"),
        (MINIMAL + "  packing: {kind: best_fit, window: 0}\n", "`dataset.packing`: packing.window=0 must be"),
        (MINIMAL + "  packing: {kind: next_fit, tail: x}\n", "`dataset.packing.tail`: expected pad or drop, found 'x'"),
        (
            MINIMAL + "  packing: {kind: next_fit, lookahead: false}\n",
            'run.yaml:4: `dataset.packing`: lookahead=False works with packing="wrap" only',
        ),
        (MINIMAL + "  chat: 7\n", "`dataset.chat`: expected a mapping of Chat's fields or text or null, found 7"),
        (MINIMAL + "  hold_out: {part: val}\n", "`dataset.hold_out.fraction` must be given"),
        # keys given twice
        (MINIMAL + "  seed: 1\n  seed: 2\n", "run.yaml:5: `dataset.seed` is given twice, first on line 4"),
        (MINIMAL + "dataset: {}\n", "run.yaml:4: `dataset` is given twice, first on line 1"),
        (
            MINIMAL + "  storage: {options: {a: [{b: 1, b: 2}]}}\n",
            "run.yaml:4: `dataset.storage.options.a.0.b` is given twice",
        ),
        # wrong types
        (
            MINIMAL + "  seq_len: long\n",
            r"run.yaml:4: `dataset.seq_len`: expected a whole number, found 'long' \(str\)",
        ),
        (MINIMAL + "  seq_len: 8.5\n", r"`dataset.seq_len`: expected a whole number, found 8.5 \(float\)"),
        (MINIMAL + "  seq_len: true\n", r"`dataset.seq_len`: expected a whole number, found True \(bool\)"),
        (MINIMAL + "  seq_len: null\n", "`dataset.seq_len`: expected a whole number, found null"),
        (MINIMAL + "  epochs: x\n", "`dataset.epochs`: expected a whole number or null, found 'x'"),
        (MINIMAL + "  num_lanes: many\n", "`dataset.num_lanes`: expected a whole number or auto, found 'many'"),
        (MINIMAL + "  shuffle: 1\n", "`dataset.shuffle`: expected a mapping of Shuffle's .* or shards, found 1"),
        (
            MINIMAL + "  hold_out: {part: train, fraction: 1e-3}\n",
            "`dataset.hold_out.fraction`: expected a number, found '1e-3'.*point and a sign: 1.0e-3",
        ),
        (
            MINIMAL + "  boundary: masked\n",
            "`dataset.boundary`: expected keep or mask or trim .*or {replace: token id}, found 'masked'",
        ),
        (MINIMAL + "  boundary: {replace: x}\n", "`dataset.boundary.replace`: expected a whole number, found 'x'"),
        (MINIMAL + "  boundary: {}\n", "`dataset.boundary.replace` must be given"),
        (MINIMAL + "  storage: {options: {1: 2}}\n", "`dataset.storage.options`: expected a mapping, found {1: 2}"),
        (
            MINIMAL + "  storage: {retry: {budget: 3}}\n",
            r"run.yaml:4: unknown key `budget` in `dataset.storage.retry`: did you mean `budget_s`\?",
        ),
        (
            MINIMAL + "  storage:\n    retry:\n      budget_s: x\n",
            r"run.yaml:6: `dataset.storage.retry.budget_s`: expected a number, found 'x'",
        ),
        (MINIMAL + "  storage: {retry: {max_tries: 0}}\n", "run.yaml:4: `dataset.storage.retry`: max_tries=0 must be"),
        (MINIMAL + "  storage: {retry: 3}\n", "run.yaml:4: `dataset.storage.retry` must be a mapping .*; found 3"),
        ("dataset:\n  tokenizer: t\n  data: [a, 7]\n", r"run.yaml:3: `dataset.data\[1\]`: .*found 7"),
        (
            "dataset:\n  tokenizer: t\n  data: 7\n",
            "run.yaml:3: `dataset.data`: expected text or a list of texts or a mapping of names to .*, found 7",
        ),
        # sections
        ("", "run.yaml:1: the file must be a mapping with keys of dataset, loader; found null"),
        ("- dataset\n", "run.yaml:1: the file must be a mapping"),
        ("loader: {}\n", "run.yaml:1: `dataset` must be given"),
        ("dataset:\n  data: a.tar\n", "run.yaml:1: `dataset.tokenizer` must be given"),
        (MINIMAL + "loader:\n", "run.yaml:4: `loader` must be a mapping with keys of batch_size.*; found null"),
        # not YAML, and YAML that makes objects
        ("dataset: [\n", "run.yaml: the config file is not YAML"),
        (MINIMAL + "  seed: !!python/object/apply:os.getpid []\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_what_a_file_may_not_say_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        loaded(tmp_path, text)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: the config file cannot be read: .*No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"dataset: \xe9")
    with pytest.raises(ConfigError, match=r"latin.yaml: the config file cannot be read: .*can't decode"):
        load_config(tmp_path / "latin.yaml")


LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghijkl")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in itertools.pairwise("abcdefghijkl")
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dataset: &d\n  data: *d\n  tokenizer: t\n", r":2: .* large: the alias \*d is inside what it stands for"),
        (LAUGHS, r"run.yaml:6: .*with its aliases spelled out the file has more than 1,048,576 values and characters"),
        (MERGES, r"run.yaml:7: .*with its aliases spelled out the file has more than 1,048,576 values"),
        (f"a: &a {'x' * 10**5}\nb: [{'*a, ' * 20}]\n", r"run.yaml:2: .*with its aliases spelled out"),
        ("a: " + "[" * 10**5, "run.yaml:1: .*more than 32 mappings and lists inside each other"),
        ("a:\n" + "\n".join(" " * depth + "-" for depth in range(500)), "run.yaml:33: .*more than 32 mappings"),
        ("#" * 2**20 + "\n", "run.yaml: .*1,048,577 characters, more than 1,048,576; give long lists of shards"),
    ],
)
def test_a_file_that_stands_for_too_much_is_refused_at_once(tmp_path: Path, text: str, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        loaded(tmp_path, text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "value",
    ["2001-99-99", "!!bool 7", '!!int ""', "!!timestamp never", "9" * 5000, "!!binary é", "!!float x", "{[a]: b}"],
)
def test_a_value_that_yaml_cannot_make_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)the config file is not YAML: .*line {MINIMAL.count(chr(10)) + 1}"):
        loaded(tmp_path, MINIMAL + f"  seed: {value}\n")


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL + "  storage: {options: {a: &x {k: 1}, b: {<<: *x, l: 2}}}\n")
    assert config.dataset["storage"].options == {"a": {"k": 1}, "b": {"k": 1, "l": 2}}


SOURCES = """\
dataset:
  tokenizer: t.model
  {key}:
    web: {{data: ./web/*.tar, weight: 0.7, storage: {{cache_bytes: 2GiB}}}}
    code: {{data: [./a.tar, b.tar], weight: 1, field: "json:content", transform: "os.path:basename", max_epochs: 4}}
    books: ../books.tar
  num_tokens: 2.0e+12
  stages:
    - {{}}
    - at_tokens: 1.0e+9
      sources: {{more: {{data: ./more.tar, transform: "os.path:dirname"}}}}
      weights: {{web: 1, more: 0.5}}
      packing: {{kind: next_fit, overflow: drop}}
      boundary: {{replace: 7}}
"""


@pytest.mark.parametrize("key", ["data", "sources"])
def test_sources_and_stages_are_mappings_of_their_fields(tmp_path: Path, key: str) -> None:
    config = loaded(tmp_path, SOURCES.format(key=key))
    arguments = config.dataset_arguments()
    assert arguments["data"] == {
        "web": Source(f"{tmp_path}/web/*.tar", 0.7, storage=Storage(cache_bytes=2**31)),
        "code": Source([f"{tmp_path}/a.tar", "b.tar"], field="json:content", transform=os.path.basename, max_epochs=4),
        "books": f"{tmp_path.parent}/books.tar",
    }
    assert arguments["stages"] == [
        Stage(),
        Stage(
            at_tokens=10**9,
            sources={"more": Source(f"{tmp_path}/more.tar", transform=os.path.dirname)},
            weights={"web": 1, "more": 0.5},
            packing=Packing("next_fit", overflow="drop"),
            boundary=ReplaceBoundary(7),
        ),
    ]
    assert arguments["num_tokens"] == 2e12
    assert set(arguments) == {"data", "tokenizer", "num_tokens", "stages"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("weight: 0.7", "weight: much", r"run.yaml:4: `dataset.sources.web.weight`: expected a number, found 'much'"),
        ("weight: 0.7", "weight: -1", r"run.yaml:4: `dataset.sources.web`: weight=-1 must be a number of at least 0"),
        ("weight: 0.7", "wait: 1", r"run.yaml:4: unknown key `wait` in `dataset.sources.web`: did you mean `weight`"),
        (
            "../books.tar",
            "0.5",
            r"run.yaml:6: `dataset.sources.books`: expected text.*; a weight goes into the source: books: \{data: sh",
        ),
        ("- {}", "- {wait: 1}", r"run.yaml:9: unknown key `wait` in `dataset.stages\[0\]`"),
        ("- {}", "- 1", r"run.yaml:9: `dataset.stages\[0\]`"),
        ("{data: ./more.tar, ", "{", r"run.yaml:11: `dataset.stages\[1\].sources.more.data` must be given"),
        ("{more: {", "{1: {", r"run.yaml:11: `dataset.stages\[1\].sources`: the name 1 is of type int"),
        ("data: ./web/*.tar, ", "", r"run.yaml:4: `dataset.sources.web.data` must be given"),
        ("max_epochs: 4", "max_epochs: 0", r"run.yaml:5: `dataset.sources.code`: max_epochs=0 must be"),
        (
            "1.0e+9",
            "1e9",
            r"run.yaml:10: `dataset.stages\[1\].at_tokens`: expected a number or null, found '1e9'.*point",
        ),
        (
            "{web: 1, more: 0.5}",
            "[1, 2]",
            r"run.yaml:12: `dataset.stages\[1\].weights`: expected a mapping of names to",
        ),
        ("web: 1,", "web: x,", r"run.yaml:12: `dataset.stages\[1\].weights.web`: expected a number, found 'x'"),
        ("web: 1,", "web: -1,", r"run.yaml:10: `dataset.stages\[1\]`: weights\['web'\]=-1 must be"),
        (
            "  num_tokens",
            "  data: a.tar\n  num_tokens",
            "`dataset.data` and `dataset.sources` are both given: leave one of them out",
        ),
        ("os.path:dirname", "os:no", r"`dataset.stages\[1\].sources.more.transform`: 'os:no' cannot be imported"),
    ],
)
def test_a_mistake_in_sources_or_stages_is_found_by_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = SOURCES.format(key="sources")
    assert old in text
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        loaded(tmp_path, text.replace(old, new)).dataset_arguments()


def test_stages_that_are_a_mapping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"run.yaml:4: `dataset.stages`: expected a list, each item a mapping of Stage's fie"
    ):
        loaded(tmp_path, MINIMAL + "  stages: {at_packs: 3}\n")


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ("{}", "`dataset.sources` is empty: name at least one source"),
        ("{no: a.tar}", "`dataset.sources`: the name False is of type bool, as YAML reads it"),
        ("{1: a.tar}", "`dataset.sources`: the name 1 is of type int, as YAML reads it"),
    ],
)
def test_sources_need_names(tmp_path: Path, sources: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        loaded(tmp_path, f"dataset:\n  tokenizer: streampack.testing:ByteTokenizer\n  sources: {sources}\n")
