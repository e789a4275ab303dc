"""Documents that a stage leaves out: gone from its first pack on, and nothing else is, on every topology."""

import dataclasses
import json
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.reference import prose
from support.thorough import THOROUGH
from support.traces import MODEL
from typer.testing import CliRunner

import streampack
from streampack import ConfigError, Packing, Shuffle, Source, Stage, StateError
from streampack.cli import app
from streampack.cli.plan.sampling import take_sample
from streampack.config.file import load_config
from streampack.documents import excluded
from streampack.testing import ByteTokenizer, write_shards

LANES = 12
Line = dict[str, Any]


class Pack(NamedTuple):
    """A pack of a run, and the (source, shard, key, record) of its documents."""

    tokens: list[int]
    origins: tuple[Any, ...]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("data")
    web = write_shards(folder / "a", prose(0, 150), documents_per_shard=50)
    web += write_shards(folder / "b", prose(1, 30), documents_per_shard=30, compression="gz")
    code: list[str | bytes] = list(prose(2, 240))
    shards = write_shards(folder / "code", code, field="jsonl:text", documents_per_shard=120, documents_per_member=2)
    return {"web": Source(web), "code": Source(shards, field="jsonl:text")}


def lines(path: Path, given: Iterable[Line | str]) -> str:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in given))
    return str(path)


def dataset(data: Any, stages: Sequence[Stage], **changes: Any) -> streampack.PackedDataset:
    arguments = {"seq_len": 64, "num_lanes": LANES, **changes}
    return streampack.PackedDataset(data, ByteTokenizer(), **arguments, stages=stages)


def loaders(data: streampack.PackedDataset, ranks: int, workers: int = 0) -> list[streampack.PackedDataLoader]:
    return [
        streampack.PackedDataLoader(
            data,
            1,
            num_workers=workers,
            dp_rank=rank,
            dp_size=ranks,
            provenance=True,
            multiprocessing_context="fork",
        )
        for rank in range(ranks)
    ]


def take(of_ranks: list[streampack.PackedDataLoader], packs: int | None) -> list[Pack]:
    """So many packs in the global order; None: up to the end."""
    found: list[Pack] = []
    iterators = [iter(loader) for loader in of_ranks]
    while packs is None or len(found) < packs:
        batches = [batch for iterator in iterators if (batch := next(iterator, None)) is not None]
        if not batches:
            break
        found += [Pack(batch["tokens"][0].tolist(), batch["provenance"][0]) for batch in batches]
    return found


def line_of(origin: Any) -> Line:
    name = "/".join(origin.url.rsplit("/", 2)[1:]) if origin.source == "web" else origin.url.rpartition("/")[2]
    line = {"source": origin.source, "shard": name, "key": origin.key}
    return line | {"record": origin.record} if origin.source == "code" else line


def is_in(given: Iterable[Line], origin: Any) -> bool:
    return any(line.items() <= line_of(origin).items() for line in given)


def rows_of(packs: Sequence[Pack], begin: int, lane: int, source: str) -> list[tuple[Any, ...]]:
    """Where each row of a source in a lane is from, and its token, from a global pack on."""
    found = []
    for number, pack in enumerate(packs):
        at = 0
        for origin in pack.origins:
            if number >= begin and number % LANES == lane and origin.source == source:
                tokens = pack.tokens[at : at + origin.length]
                place = origin.epoch, origin.url, origin.key, origin.record
                found += [(*place, origin.row + row, token) for row, token in enumerate(tokens)]
            at += origin.length
    return found


CASES: dict[str, dict[str, Any]] = {
    "windows": {"shuffle": Shuffle(block_bytes=8192, window=2)},
    "shards, next_fit": {"shuffle": "shards", "packing": "next_fit"},
    **({"listed, keep": {"shuffle": False, "boundary": "keep", "seq_len": 256}} if THOROUGH else {}),
}
BEGIN = 96


@pytest.mark.parametrize("case", CASES)
def test_from_its_stage_on_they_are_gone_and_all_else_is_as_it_was(
    case: str, sources: dict[str, Source], tmp_path: Path
) -> None:
    changes = {**CASES[case], "num_packs": 204}
    plain = take(loaders(dataset(sources, [Stage()], **changes), 1), 204)
    # Documents under way at the stage's beginning, some that come soon, and members of many with all their records.
    under_way = [pack.origins[0] for pack in plain[BEGIN : BEGIN + LANES : 2]]
    assert any(origin.row for origin in under_way)
    origins = [*under_way, *[origin for pack in plain[BEGIN : BEGIN + 36] for origin in pack.origins][::4]]
    given = [line_of(origin) for origin in origins]
    given += [dict(list(line.items())[:3]) for line in given if line["source"] == "code"][:2]
    assert len({line["source"] for line in given}) == 2
    stages = [Stage(), Stage(at_packs=BEGIN - 5, exclude=lines(tmp_path / "bad.jsonl", given))]
    data = dataset(sources, stages, **changes)
    [loader] = loaders(data, 1)
    found = take([loader], 204)
    assert [pack.tokens for pack in found[:BEGIN]] == [pack.tokens for pack in plain[:BEGIN]]
    assert any(is_in(given, origin) for pack in plain[:BEGIN] for origin in pack.origins)
    compared = 0
    for lane in range(LANES):
        for source in sources:
            excluded = {tuple(line.values()) for line in given}
            left = [
                row
                for row in rows_of(plain, BEGIN, lane, source)
                if not excluded & {(source, *shown(row)), (source, *shown(row)[:2])}
            ]
            now = rows_of(found, BEGIN, lane, source)
            size = min(len(left), len(now))
            compared += size
            assert now[:size] == left[:size], (lane, source)
    assert compared > 4000
    assert loader.stats()["bad_records"] == 0

    # The same packs on other topologies, through resumes around the beginning of the stage and after it.
    state, at = None, 0
    for stop, ranks in ((BEGIN - 6, 3), (BEGIN, 2), (BEGIN + 6, 1), (BEGIN + 24, 3), (BEGIN + 42, 2)):
        of_ranks = loaders(data, ranks)
        for each in of_ranks if state is not None else []:
            each.load_state_dict(state)
        assert take(of_ranks, stop - at) == found[at:stop], (stop, ranks)
        state, at = streampack.merge_state_dicts(each.state_dict() for each in of_ranks), stop


def test_of_a_packing_window_that_is_half_out_the_rest_is_left_out(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    """Each other row comes once in the epoch; a second stage leaves more out of the same windows."""
    once = {name: dataclasses.replace(source, max_epochs=1) for name, source in sources.items()}
    changes = {"packing": Packing("best_fit", window=7)}
    plain = take(loaders(dataset(once, [Stage()], **changes), 1), None)
    second = BEGIN + 2 * LANES
    after = [origin for pack in plain[BEGIN : BEGIN + 150] for origin in pack.origins]
    first_lines, second_lines = [line_of(each) for each in after[::4]], [line_of(each) for each in after[1::4]]
    stages = [
        Stage(),
        Stage(at_packs=BEGIN, exclude=lines(tmp_path / "first.jsonl", first_lines)),
        Stage(at_packs=second, exclude=lines(tmp_path / "second.jsonl", second_lines)),
    ]
    data = dataset(once, stages, **changes)
    found = take(loaders(data, 1), None)
    assert found[:BEGIN] == plain[:BEGIN]
    counted = [Counter(all_rows(packs, 0)) for packs in (plain, found)]
    gone = {tuple(line.values()) for line in first_lines}
    gone_later = gone | {tuple(line.values()) for line in second_lines}
    assert max(counted[1].values()) == 1
    for row in counted[1]:
        assert row in counted[0]
    for begin, end, left_out in ((BEGIN, second, gone), (second, len(found), gone_later)):
        for row in all_rows(found, begin, end):
            assert (row[0], *shown(row[1:])) not in left_out
    lost = [row for row in counted[0] - counted[1] if (row[0], *shown(row[1:])) not in gone_later]
    assert not lost
    assert len(counted[0] - counted[1]) > 1000

    state, at = None, 0
    for stop, ranks in ((BEGIN - 6, 3), (BEGIN, 2), (BEGIN + 6, 1), (second, 3), (second + 30, 2)):
        of_ranks = loaders(data, ranks)
        for each in of_ranks if state is not None else []:
            each.load_state_dict(state)
        assert take(of_ranks, stop - at) == found[at:stop], (stop, ranks)
        state, at = streampack.merge_state_dicts(each.state_dict() for each in of_ranks), stop


def all_rows(packs: Sequence[Pack], begin: int, end: int | None = None) -> list[tuple[Any, ...]]:
    """(source, place of the row, its token) of every row from a global pack to before another."""
    found = []
    for pack in packs[begin:end]:
        at = 0
        for each in pack.origins:
            tokens = pack.tokens[at : at + each.length]
            place = each.source, each.epoch, each.url, each.key, each.record
            found += [(*place, each.row + row, token) for row, token in enumerate(tokens)]
            at += each.length
    return found


def shown(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """(shard, key, record) of a row, as a line has them."""
    _, url, key, record, *_ = row
    folder, name = url.rsplit("/", 2)[1:]
    return (name, key, record) if folder == "code" else (f"{folder}/{name}", key)


def test_workers_leave_them_out_too(sources: dict[str, Source], tmp_path: Path) -> None:
    plain = take(loaders(dataset(sources, [Stage()]), 1), 60)
    given = [line_of(origin) for pack in plain[:12] for origin in pack.origins]
    data = dataset(sources, [Stage(exclude=lines(tmp_path / "bad.jsonl", given))])
    [alone], [worked] = loaders(data, 1), loaders(data, 1, workers=2)
    with worked:
        found = take([worked], 60)
    assert found == take([alone], 60)
    assert not any(is_in(given, origin) for pack in found for origin in pack.origins)


def test_what_is_left_out_is_no_bad_record(tmp_path: Path) -> None:
    texts: list[str | bytes] = list(prose(3, 60))
    texts[7] = b"\xff"
    shards = write_shards(tmp_path / "txt", texts, documents_per_shard=20)
    members = [b'{"text": "a"}\n' * 9, b'{"text": 1}\n{"text": "b"}\n', b"\xff\xfe\n", b'{"text": "c"}\n' * 9]
    many = write_shards(tmp_path / "jsonl", members, field="jsonl:text", documents_per_shard=4, documents_per_member=1)
    data = {"txt": Source(shards, max_epochs=1), "jsonl": Source(many, field="jsonl:text", max_epochs=1)}
    given = [
        {"source": "txt", "shard": "00000.tar", "key": "00000007"},
        {"source": "jsonl", "shard": "00000.tar", "key": "00000001", "record": 0},
        {"source": "jsonl", "shard": "00000.tar", "key": "00000002"},
    ]
    for count in range(3):
        stages = [Stage(exclude=lines(tmp_path / "some.jsonl", given[:count]))]
        with pytest.raises(streampack.RecordError):
            list(*loaders(dataset(data, stages, num_lanes=1), 1))
    stages = [Stage(exclude=lines(tmp_path / "all.jsonl", given))]
    [loader] = loaders(dataset(data, stages, num_lanes=1, on_error="skip", max_bad=0), 1)
    keys = {origin.key for batch in loader for of_pack in batch["provenance"] for origin in of_pack}
    assert "00000007" not in keys and "00000008" in keys
    counts = loader.stats()
    assert (counts["bad_records"], counts["documents"]) == (0, 59 + 9 + 1 + 9)


def test_count_and_the_sample_of_plan_are_without_what_the_first_stage_leaves_out(tmp_path: Path) -> None:
    members = [b'{"text": "aaaa"}\n{"text": 1}\n{"text": "bb"}\n', b'{"text": "cccc"}\n' * 3]
    write_shards(tmp_path / "data", members, field="jsonl:text", documents_per_shard=2, documents_per_member=1)
    given = {"source": "default", "shard": "00000.tar"}
    lines(tmp_path / "bad.jsonl", [{**given, "key": "00000000", "record": n} for n in (0, 1)])
    lines(tmp_path / "later.jsonl", [{**given, "key": "00000001"}])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: {{data: {tmp_path}/data/, field: 'jsonl:text', tokenizer: {MODEL}, seq_len: 4, num_lanes: 1, "
        "stages: [{exclude: ./bad.jsonl}, {at_packs: 2, exclude: ./later.jsonl}]}\n"
    )
    result = CliRunner().invoke(app, ["count", str(config), "--json"])
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert (counted["documents"], counted["bad_records"]) == (4, 0)
    run = streampack.PackedDataLoader.from_config(str(config)).dataset.run()
    [source] = run.sources
    sampled = take_sample(source.pipelines[0], source.corpus, 2**16)
    assert (len(sampled.document_tokens), sampled.bad) == (4, 0)
    verified = CliRunner().invoke(app, ["verify", str(config)])
    assert verified.exit_code == 1 and "5 documents: 1 problem" in verified.stdout


def test_the_past_keeps_its_file_and_a_later_stage_adds_to_it(sources: dict[str, Source], tmp_path: Path) -> None:
    plain = take(loaders(dataset(sources, [Stage()]), 1), 200)
    first, second = ([line_of(plain[at].origins[-1])] for at in (100, 150))
    stages = [Stage(), Stage(at_packs=48, exclude=lines(tmp_path / "first.jsonl", first))]
    [loader] = loaders(dataset(sources, stages), 1)
    take([loader], 72)
    state = loader.state_dict()
    more = Stage(at_packs=72, exclude=lines(tmp_path / "second.jsonl", second))
    [again] = loaders(dataset(sources, [*stages, more]), 1)
    again.load_state_dict(state)
    origins = [origin for pack in take([again], 200) for origin in pack.origins]
    assert not any(is_in([*first, *second], origin) for origin in origins)
    for changed, now in (([*first, *second], r"'2 records, digest \w+'"), ([], "None")):
        lines(tmp_path / "first.jsonl", changed)
        [again] = loaders(dataset(sources, stages), 1)
        told = rf"stages\[1\].*exclude.*'1 records, digest \w+' in the checkpoint, {now} now"
        with pytest.raises(StateError, match=told):
            again.load_state_dict(state)
    lines(tmp_path / "first.jsonl", ["", *first, *first])  # the same records
    [again] = loaders(dataset(sources, stages), 1)
    again.load_state_dict(state)


def test_of_one_record_samples_record_0_is_the_sample(sources: dict[str, Source], tmp_path: Path) -> None:
    line = {"source": "web", "shard": "a/00000.tar", "key": "00000003"}
    prints = []
    for each in (line, {**line, "record": 0}, {**line, "record": None}):
        data = dataset(sources, [Stage(exclude=lines(tmp_path / "bad.jsonl", [each]))])
        prints.append(json.dumps(data.fingerprint()))
    assert "1 records, digest" in prints[0]
    assert prints == 3 * prints[:1]


def test_a_source_of_which_nothing_is_left_is_told_by_its_exclude(sources: dict[str, Source], tmp_path: Path) -> None:
    web = {"web": Source(sources["web"].data[:1])}
    given = [{"source": "web", "shard": "00000.tar", "key": f"{n:08d}"} for n in range(50)]
    stages = [Stage(), Stage(at_packs=5, exclude=lines(tmp_path / "all.jsonl", given))]
    [loader] = loaders(dataset(web, stages, num_lanes=1), 1)
    told = r"exclude of the stages up to stages\[1\] leaves 50 of its records out.*Use .*fewer lines in exclude, "
    with pytest.raises(ConfigError, match=told):
        take([loader], 100)


def test_a_source_that_is_left_out_of_the_data_goes_out_of_the_files_too(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    of_web = {"source": "web", "shard": "a/00000.tar", "key": "00000003"}
    of_code = {"source": "code", "shard": "00000.tar", "key": "00000001", "record": 1}
    file = lines(tmp_path / "bad.jsonl", [of_web, of_code])
    stages = [Stage(exclude=file), Stage(at_packs=24, weights={"code": 1})]
    [loader] = loaders(dataset(sources, stages), 1)
    take([loader], 36)
    state, code = loader.state_dict(), {"code": sources["code"]}
    with pytest.raises(ConfigError, match=r"is not in this run: 'code'\. If it was left out.*remove its lines"):
        dataset(code, stages)
    lines(tmp_path / "bad.jsonl", [of_code])
    [again] = loaders(dataset(code, stages), 1)
    again.load_state_dict(state)
    assert take([again], 24) == take([loader], 24)


def test_blank_lines_are_no_lines_of_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excluded, "MOST_LINES", 2)
    line = b'{"source": "web", "shard": "0.tar", "key": "1"}\n'
    assert [each.number for each in excluded.excluded_lines(b"\n\n" + line + b"\n" + line, url="x")] == [3, 5]
    with pytest.raises(ConfigError, match="more than 2 lines"):
        list(excluded.excluded_lines(3 * line, url="x"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"source": "wbe", "shard": "a/00000.tar", "key": "1"}', "source 'wbe' is not in this run: 'web', 'code'"),
        (
            '{"source": "web", "shard": "00000.tar", "key": "1"}',
            "line 2: source 'web' has no shard '00000.tar'; did you mean 'a/00000.tar'?",
        ),
        (
            '{"source": "code", "shard": "s3://b/code/00000.tar", "key": "1"}',
            "line 2: source 'code' has no shard 's3://b/code/00000.tar'; did you mean '00000.tar'?",
        ),
        ('{"source": "web", "shard": "a/00000.tar"}', "line 2: key is None. A line is"),
        ('{"source": "web", "shard": "a/00000.tar", "key": "1", "recrod": 1}', "unknown key 'recrod'. A line is"),
        ('{"source": "code", "shard": "00000.tar", "key": "1", "record": -1}', "line 2: record is -1. A line is"),
        ('{"source": "web", "shard": "a/00000.tar", "key": "1", "record": 3}', "each sample of source 'web' is one"),
        ("a/00000.tar 1", "line 2: not JSON"),
        ('["web"]', "is not a JSON object. A line is"),
        (100_000 * "[", "line 2: JSON that is nested too deeply. A line is"),
    ],
)
def test_a_line_about_nothing_is_an_error_with_file_and_line(
    line: str, told: str, sources: dict[str, Source], tmp_path: Path
) -> None:
    good = '{"source": "web", "shard": "a/00000.tar", "key": "00000003"}'
    file = lines(tmp_path / "bad.jsonl", [good, line])
    with pytest.raises(ConfigError) as raised:
        dataset(sources, [Stage(), Stage(at_packs=48, exclude=file)])
    assert told in str(raised.value)
    assert str(raised.value).startswith(f"{file}: line 2: ")


def test_a_file_that_is_not_there_is_an_error(sources: dict[str, Source], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*exclude of stages\[1\] cannot be read: there is no such file"):
        dataset(sources, [Stage(), Stage(at_packs=48, exclude=tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match=r"exclude=5 must be the path or URL of a file"):
        Stage(exclude=5)  # type: ignore[arg-type]


def test_a_config_names_the_file_beside_it(sources: dict[str, Source], tmp_path: Path) -> None:
    lines(tmp_path / "bad.jsonl", [])
    config = tmp_path / "run.yaml"
    config.write_text("dataset: {data: x/, tokenizer: t.model, stages: [{exclude: ./bad.jsonl}]}\n")
    [stage] = load_config(config).dataset_arguments()["stages"]
    assert stage.exclude == os.fspath(tmp_path / "bad.jsonl")


def test_without_a_file_the_fingerprint_is_as_ever(sources: dict[str, Source]) -> None:
    assert "exclude" not in json.dumps(dataset(sources, [Stage()]).fingerprint())


def test_stages_and_sources_share_what_they_leave_out(sources: dict[str, Source], tmp_path: Path) -> None:
    """What is sent to a worker does not grow with the number of stages."""
    given = [{"source": "web", "shard": "a/00000.tar", "key": f"key {n}"} for n in range(5000)]
    first = Stage(exclude=lines(tmp_path / "bad.jsonl", given))
    sizes = []
    for later in (0, 5):
        stages = [first, *(Stage(at_packs=48 * n, seq_len=32 + n) for n in range(1, 1 + later))]
        sizes.append(len(pickle.dumps(dataset(sources, stages).run())))
    assert sizes[1] < sizes[0] + 10_000
    assert len(list(islice(loaders(dataset(sources, [first]), 1)[0], 1))) == 1
