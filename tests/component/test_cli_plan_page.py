"""`streampack plan --html`: a page that says what the terminal says, looked at in a real browser."""

import html
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.browser import Browser, browser
from support.thorough import nightly
from typer.testing import CliRunner

from streampack import PackedDataLoader, PackedDataset
from streampack.cli import app
from streampack.cli.arguments import make_dataset
from streampack.cli.plan.making import make_plan
from streampack.cli.replay import Replay
from streampack.examples.make_data import DATA
from streampack.testing import write_shards

WIDTHS = (360, 1280)
WITHOUT_UNIT = """
[...document.querySelectorAll('figure')].filter(each => !each.querySelector('figcaption .unit')?.innerText.trim())
  .map(each => each.innerText)
  .concat([...document.querySelectorAll('.figure')].filter(each => {
    const unit = each.parentElement.querySelector('.unit')?.innerText.trim();
    const words = !/[0-9]/.test(each.innerText);
    return each.innerText.trim() && !unit && !words && !/(%|B|×|[/]s)$/.test(each.innerText);
  }).map(each => each.parentElement.innerText))
"""
WIDER_THAN_THE_PAGE = """
[...document.querySelectorAll('body *')].filter(each => !each.closest('.table, .pack, svg')
  && each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(each => each.outerHTML)
"""
OVERLAPPING_TEXTS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  return texts.flatMap(([name, a], index) => texts.slice(index + 1).filter(([_, b]) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1
  ).map(([other]) => name + ' | ' + other));
})
"""
FIRST_FIGURES_OFF_THE_SCREEN = """
[...document.querySelectorAll('.table tr')].filter(row => {
  const first = [...row.cells].slice(1).find(each => each.innerText.trim());
  return first && first.getBoundingClientRect().right > row.closest('.table').getBoundingClientRect().right;
}).map(row => row.innerText)
"""
NARROW_FACTS = "[...document.querySelectorAll('dd')].filter(e => e.clientWidth < 100).map(e => e.innerText)"
COLOURS_OF_THE_KEY = """
[...document.querySelector('figure .key').querySelectorAll('rect')].map(each => {
  const fill = getComputedStyle(each).fill;
  if (!fill.startsWith('url')) return fill;
  const hatch = document.querySelector(fill.match(/#[a-z0-9]+/)[0]);
  return [...hatch.children].map(part => getComputedStyle(part).fill + getComputedStyle(part).stroke).join()
    + hatch.getAttribute('patternTransform') + hatch.getAttribute('width');
})
"""
VARIANCES = """
[...document.querySelectorAll('.row')].filter(row => row.innerText.includes('variance')).map(row => ({
  value: parseFloat(row.querySelector('.figure').innerText), bar: row.querySelector('.chosen').width.baseVal.value,
  mark: row.querySelector('.mark').x1.baseVal.value, all: row.querySelector('.ground').width.baseVal.value,
  order: [...row.querySelectorAll('.chosen, .outline, .mark')].map(each => each.getAttribute('class')).join(' '),
  higher: row.querySelector('.mark').y2.baseVal.value - row.querySelector('.chosen').height.baseVal.value,
}))
"""


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ten sources with long names in three stages; some have one shard, some as many as documents."""
    folder = tmp_path_factory.mktemp("mix")
    names = [f"a-crawl-in-one-of-its-languages-{number}" for number in range(10)]
    for number, name in enumerate(names):
        texts = [f"Words of the page {i}. " * (1 + i % 9) for i in range(12)]
        write_shards(folder / name, texts, documents_per_shard=12 // (1 + number))
    stage = ", ".join(f"{name}: {1 + number}" for number, name in enumerate(names))
    (folder / "run.yaml").write_text(
        f"dataset: {{tokenizer: {str(DATA / 'devil.model')!r}, seq_len: 64, num_lanes: 4, num_packs: 400, sources: "
        f"{{{', '.join(f'{name}: ./{name}/' for name in names)}}}, stages: [{{weights: {{{stage}}}}}, "
        f"{{at_packs: 300, seq_len: 128, weights: {{{names[0]}: 1}}}}, {{at_packs: 390, weights: {{{stage}}}}}]}}\n"
        "loader: {batch_size: 8, num_workers: 0}\n"
    )
    asked = ["plan", str(folder / "run.yaml"), "--ranks", "4", "--html", str(folder / "plan.html")]
    made = CliRunner().invoke(app, asked)
    assert made.exit_code == 0, made.output
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix of two sources in two stages, a state in the second one, and the page of that."""
    folder = tmp_path_factory.mktemp("plan")
    write_shards(folder / "web", [f"Words of the page {i}. " * (1 + i % 9) for i in range(120)], documents_per_shard=20)
    long = "a<b && c>d\u202e and many words " * 40
    write_shards(folder / "code", [long] * 10, documents_per_shard=5)
    (folder / "run.yaml").write_text(
        f"dataset: {{tokenizer: {str(DATA / 'devil.model')!r}, seq_len: 64, num_lanes: 4, num_packs: 200, sources: "
        "{web: ./web/, code: ./code/}, "
        "stages: [{weights: {web: 3, code: 1}}, {at_packs: 80, weights: {web: 1, code: 1}}]}\n"
        "loader: {batch_size: 2, num_workers: 0}\n"
    )
    with PackedDataLoader.from_config(folder / "run.yaml") as loader:
        for _ in islice(loader, 60):
            pass
        torch.save(loader.state_dict(), folder / "state.pt")
    options = ["--ranks", "2", "--state", str(folder / "state.pt"), "--html", str(folder / "plan.html")]
    made = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["plan", str(folder / "run.yaml"), *options])
    assert made.exit_code == 0, made.output
    (folder / "terminal.txt").write_text(made.stdout)
    return folder


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.mark.parametrize(
    ("width", "dark"), [*zip(WIDTHS, (False, True), strict=True), *nightly([*zip(WIDTHS, (True, False), strict=True)])]
)
def test_a_browser_shows_it_without_an_error_or_anything_wider_than_the_screen(
    width: int, dark: bool, folder: Path, tab: Browser
) -> None:
    tab.open(folder / "plan.html", width=width, dark=dark)
    sizes = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes[0] <= sizes[1] <= width
    assert tab.evaluate(WIDER_THAN_THE_PAGE) == []
    assert tab.console == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {(folder / "plan.html").as_uri()}
    assert tab.evaluate("document.scripts.length") == 0
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 200) is dark


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_lies_on_another_and_each_row_of_a_table_shows_a_figure(
    width: int, folder: Path, mix: Path, tab: Browser
) -> None:
    for each in (folder, mix):
        tab.open(each / "plan.html", width=width)
        sizes = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert sizes[0] <= sizes[1]
        assert tab.evaluate(OVERLAPPING_TEXTS) == []
        assert tab.evaluate(FIRST_FIGURES_OFF_THE_SCREEN) == []
        assert tab.evaluate(NARROW_FACTS) == []


def test_each_of_many_sources_looks_different(mix: Path, tab: Browser) -> None:
    tab.open(mix / "plan.html", width=360)
    found = tab.evaluate(COLOURS_OF_THE_KEY)
    assert len(found) == len(set(found)) == 10


def test_the_lanes_of_many_sources_are_bars_that_a_phone_shows(mix: Path, folder: Path, tab: Browser) -> None:
    bars = "[...document.querySelectorAll('figure')].find(e => e.innerText.includes('Tokens of the lanes'))"
    for place, many in ((mix, True), (folder, False)):
        tab.open(place / "plan.html", width=360)
        names = tab.evaluate(f"[...{bars}.querySelectorAll('.row')].map(e => e.innerText)")
        narrowest = tab.evaluate(
            f"Math.min(...[...{bars}.querySelectorAll('rect')].map(e => e.getBoundingClientRect()).filter("
            "e => e.height > 2).map(e => e.width))"
        )
        assert (len(names) == 10) is many
        assert all("tokens in the mean lane" in name and " to " in name for name in names)
        assert narrowest > 3 or many


def test_bars_of_variances_have_one_scale_and_a_mark_on_top(mix: Path, tab: Browser) -> None:
    tab.open(mix / "plan.html", width=360, dark=True)
    rows = tab.evaluate(VARIANCES)
    highest = max(2.0, *(each["value"] for each in rows))
    assert len(rows) == 10
    assert len({each["value"] for each in rows}) > 2
    for each in rows:
        assert each["bar"] / each["all"] == pytest.approx(each["value"] / highest, abs=0.01)
        assert each["mark"] / each["all"] == pytest.approx(1 / highest, abs=0.01)
        assert each["order"] == "chosen outline mark"
        assert each["higher"] > 0


def test_each_figure_has_its_unit_and_says_where_it_is_from(folder: Path, tab: Browser) -> None:
    tab.open(folder / "plan.html", width=1280)
    assert tab.evaluate("document.querySelectorAll('figure').length") >= 9
    assert tab.evaluate("document.querySelectorAll('.figure').length") >= 30
    assert tab.evaluate(WITHOUT_UNIT) == []
    titles = tab.evaluate("[...document.querySelectorAll('figcaption')].filter(e => e.querySelector('.basis'))"
                          ".map(e => e.innerText.split('measured')[0].trim())")  # fmt: skip
    assert {"Document lengths: web", "Tokens per byte of each shard: code", "Fill of each packing"} <= set(titles)


def test_it_says_what_the_terminal_says(folder: Path) -> None:
    words = re.sub(r"<[^>]*>|\s", "", (folder / "plan.html").read_text("utf-8"))
    lines = (folder / "terminal.txt").read_text("utf-8").splitlines()
    names = "lanes|state|handed out|tokens|lanes per rank|requests|buffer|range|global batch"
    found = [each for line in lines if (each := re.match(rf"({names}) {{2,}}(\S+(?: [kKMG]i?B?)?) {{2}}", line))]
    assert len(found) == len(names.split("|"))
    for each in found:
        assert each[0].replace(" ", "") in words


def test_the_state_and_the_ten_packs_after_it_are_on_the_page(folder: Path) -> None:
    text = (folder / "plan.html").read_text("utf-8")
    assert re.findall(r"<b>pack (\d+)</b>", text) == [str(number) for number in range(120, 130)]
    assert 'class="mark"' in text.split("<h2")[1]
    assert "a&lt;b &amp;&amp; c&gt;d\\u202e" in text
    assert "\u202e" not in text


def test_the_epochs_of_each_source_are_those_of_the_tokens_handed_out(folder: Path) -> None:
    dataset, asked = make_dataset([str(folder / "run.yaml")]), {"ranks": 1, "tokens_per_second": 1e4}
    replay = Replay.of(dataset, folder / "state.pt")
    plan = make_plan("run.yaml", dataset, replay, {"batch_size": 2}, **asked, bytes_per_token=None)
    assert plan.position is not None
    tokens = {name: each * plan.sources[name].corpus.estimated_tokens for name, each in plan.position.epochs.items()}
    assert tokens["web"] == pytest.approx(64 * (80 * 3 / 4 + 40 / 2), rel=0.05)
    assert tokens["code"] == pytest.approx(64 * (80 / 4 + 40 / 2), rel=0.05)


def test_captions_say_of_which_stage_and_source_they_are(mix: Path) -> None:
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", (mix / "plan.html").read_text("utf-8"))).split())
    assert "packs of 64 tokens in each way, as in stage 0; other sizes, in stages 1 (128), 2 (128), are not" in text
    assert "in the first windows of the run: of each source in the first stage" in text
    assert text.count("; a lane mixes the documents of") == 10
    assert "each with 10 sources at a time in the stage that needs most" in text


def test_the_record_of_figures_has_what_the_pictures_show(folder: Path) -> None:
    dataset = PackedDataset([str(folder / "web")], str(DATA / "devil.model"), 64, num_lanes=4)
    arguments: dict[str, Any] = {"batch_size": 2, "num_workers": 0}
    plan = make_plan(
        "run.yaml", dataset, Replay.of(dataset), arguments, ranks=1, tokens_per_second=1e4, bytes_per_token=None
    )
    sample = plan.sample
    assert sample is not None
    assert (sum(each.documents for each in sample.lengths), sum(each.tokens for each in sample.lengths)) == (
        sample.documents,
        sample.tokens,
    )
    assert len(sample.shards) == 6
    assert sum(each.tokens for each in sample.shards) == sample.tokens
    assert set(sample.packings) == {"wrap", "next_fit", "best_fit"}
    assert sample.packings["wrap"].fill > sample.packings["best_fit"].fill > sample.packings["next_fit"].fill > 0.5
    assert plan.lanes.tokens_of_lanes[0] == plan.lanes.min_tokens
    assert plan.lanes.tokens_of_lanes[-1] == plan.lanes.max_tokens
