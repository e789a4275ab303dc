"""Sources: what is taken as one, what is refused, and what the sources of a dataset have for themselves."""

import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.arguments import packed_dataset

import streampack
from streampack import PackedDataset, Source, Storage
from streampack.dataset.sources import source_seed
from streampack.errors import ConfigError, ShardNotFoundError
from streampack.testing import write_shards

DATA = str(files("streampack") / "examples" / "data")
SHARDS = [f"{DATA}/devil-0000{index}.tar" for index in range(8)]
WEB, CODE, BOOKS = SHARDS[:3]


def dataset(data: Any, **arguments: Any) -> PackedDataset:
    return packed_dataset(data, **{"seq_len": 64, "num_lanes": 4, **arguments})


def test_data_without_names_is_one_source() -> None:
    for data in (WEB, [WEB], Source(WEB), {"default": WEB}):
        made = dataset(data)
        assert list(made.sources) == ["default"]
        assert made.sources["default"] == Source([WEB])
        assert made.fingerprint() == dataset(WEB).fingerprint()


def test_sources_are_in_the_order_in_which_they_are_given() -> None:
    made = dataset({"web": Source(WEB, 0.7), "books": [BOOKS, CODE]})
    assert dict(made.sources) == {"web": Source(WEB, 0.7), "books": Source([BOOKS, CODE], 1.0)}
    assert list(made.sources) == ["web", "books"]
    assert [len(table) for table in made.tables()] == [1, 2]
    run = made.run()
    assert [(source.name, source.corpus.num_lanes, source.end_epoch) for source in run.sources] == [
        ("web", 4, None),
        ("books", 4, None),
    ]
    assert [run.schedule.stages[0].shares.share(index) for index in (0, 1)] == pytest.approx([0.7 / 1.7, 1 / 1.7])


def test_a_source_keeps_its_seed_whatever_else_there_is() -> None:
    """These numbers must never change: they are the order of every run with several sources."""
    assert source_seed(7, "default") == 7
    assert source_seed(7, "web") == 16083279759905010247
    assert source_seed(8, "web") != source_seed(7, "web") != source_seed(7, "code")
    few, many = dataset({"web": WEB, "code": CODE}, seed=7).run(), dataset({"books": BOOKS, "web": WEB}, seed=7).run()
    assert few.sources[0].corpus.seed == many.sources[1].corpus.seed == source_seed(7, "web")
    assert few.sources[0].pipelines[0].documents.seed == source_seed(7, "web")


def test_what_a_source_does_not_say_the_dataset_does(tmp_path: Path) -> None:
    def own(document: Any, rng: Any) -> Any:
        return document

    def common(document: Any, rng: Any) -> Any:
        return document

    made = dataset(
        {"web": WEB, "code": Source(CODE, field="json:text", transform=own, storage={"anon": True}, max_epochs=3)},
        transform=common,
        transform_version="1",
        storage=Storage(cache_dir=str(tmp_path)),
    )
    (web,), (code,) = (source.pipelines for source in made.run().sources)
    assert (str(web.documents.field), str(code.documents.field)) == ("txt", "json:text")
    assert (web.documents.transform, code.documents.transform) == (common, own)
    assert (web.documents.transform_version, code.documents.transform_version) == ("1", "")
    assert web.storage is not code.storage
    assert web.tokenizer is code.tokenizer
    assert [source.end_epoch for source in made.run().sources] == [None, 3]
    sources = made.fingerprint()["sources"]
    assert (sources["web"]["transform"], sources["code"]["transform"]) == ("version '1'", "version ''")
    assert sources["code"]["field"] == "json:text"


def test_sources_with_one_storage_share_its_clients() -> None:
    made = dataset({"web": WEB, "code": Source(CODE, storage=Storage())})
    web, code = (source.pipelines[0] for source in made.run().sources)
    assert web.storage is code.storage


def turns(messages: Any) -> list[tuple[str, bool]]:
    return [(message["content"], True) for message in messages]


def test_conversations_beside_text_are_packed_in_their_own_way() -> None:
    made = dataset({"web": WEB, "chats": Source(CODE, field="json:messages", chat=turns)})
    text, talk = (source.pipelines[0] for source in made.run().sources)
    assert (text.packing.kind, talk.packing.kind) == ("wrap", "next_fit")
    fingerprint = made.fingerprint()
    assert fingerprint["packing"] == "wrap"
    assert "packing" not in fingerprint["sources"]["web"]
    assert fingerprint["sources"]["chats"]["packing"] == "next_fit"
    assert made.run().schedule.stages[0].described["sources"]["chats"]["packing"] == "next_fit"
    same = dataset({"web": WEB, "chats": Source(CODE, field="json:messages")}, chat=turns)
    assert same.fingerprint() == fingerprint


def test_a_dataset_of_sources_survives_a_pickle() -> None:
    made = dataset({"web": Source(iter([WEB]), 2), "code": CODE}, num_packs=100)
    again = pickle.loads(pickle.dumps(made))
    assert again.fingerprint() == made.fingerprint()
    assert again.run().schedule == made.run().schedule


def test_another_rank_takes_the_tables_of_all_sources() -> None:
    made, other = dataset({"web": WEB, "code": CODE}), dataset({"web": WEB, "code": CODE})
    other.adopt_tables(made.tables())
    assert other.fingerprint() == made.fingerprint()
    assert other.data_digest() == made.data_digest()
    assert dataset({"web": CODE, "code": WEB}).data_digest() != made.data_digest()
    assert dataset({"web": WEB, "kode": CODE}).data_digest() != made.data_digest()


def test_lanes_are_as_many_as_the_first_stage_can_feed(tmp_path: Path) -> None:
    large = write_shards(tmp_path / "large", ["x" * 10_000] * 5000, documents_per_shard=5000)
    small = write_shards(tmp_path / "small", ["x" * 5_000] * 5, documents_per_shard=100)
    alone = dataset([str(path) for path in large], num_lanes="auto").num_lanes
    assert alone == 6
    shards = {"large": [str(path) for path in large], "small": [str(path) for path in small]}
    assert dataset(shards, num_lanes="auto").num_lanes == 6
    assert dataset({"large": shards["large"], "tiny": Source(CODE, 1)}, num_lanes="auto").num_lanes == 2
    assert dataset({"large": shards["large"], "tiny": Source(CODE, 0)}, num_lanes="auto").num_lanes == 6
    later = streampack.Stage(at_packs=600, sources={"tiny": Source(CODE)}, weights={"tiny": 1})
    assert dataset(shards, num_lanes="auto", stages=[streampack.Stage(), later]).num_lanes == 6


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "data: no sources, as the mapping is empty"),
        ({"": WEB}, "data: '' is not the name of a source"),
        ({3: WEB}, "data: 3 is not the name of a source, which is a text of letters, digits"),
        ({"the web": WEB}, "data: 'the web' is not the name"),
        ({WEB: 0.7, CODE: 0.3}, "give each a name: {'web': streampack.Source("),
        ({"web": 0.7}, "data['web']=0.7 is a number: data maps the name of each source to its shards; a weight goes"),
        ({"web": {"data": WEB}}, "data['web'] must be a streampack.Source, or what names shards; write Source(data="),
        ({"web": Source}, "data['web'] must be a streampack.Source, or what names shards; write Source(...)"),
        ({"web": None}, "source 'web': data: None must be a URL"),
        ({"web": []}, "source 'web': data: no shards"),
        ([Source(WEB), Source(CODE)], "data: several sources need names: {'web': streampack.Source(shards, 0.7)"),
        ({"web": Source(WEB, 0), "code": Source(CODE, 0)}, "all weights of 'code', 'web' are 0: one of them must be"),
        ({"web": Source(WEB, field="jason:x")}, "source 'web': field="),
        ({"web": Source(WEB, chat="chatml")}, "source 'web': chat is for conversations, and field='txt' holds none"),
        ({"web": WEB, "copy": [CODE, WEB]}, f"{WEB} is in two sources, 'web' and 'copy', and both have a weight"),
    ],
)
def test_what_is_no_mixture_is_refused(data: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(data)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"weight": -1}, "weight=-1 must be a number of at least 0, and finite"),
        ({"weight": float("nan")}, "weight=nan must be a number of at least 0, and finite"),
        ({"weight": float("inf")}, "weight=inf must be"),
        ({"weight": 10**400}, "weight is larger than any float"),
        ({"weight": "0.7"}, "weight='0.7' must be a number."),
        ({"weight": True}, "weight=True must be a number."),
        ({"field": 3}, "field=3 must be a string or None"),
        ({"transform": "fn"}, "transform='fn' must be a function or None"),
        ({"transform_version": "2"}, "transform_version='2' is of a transform, and this source has none"),
        ({"chat": 7}, "chat: template=7 must be"),
        ({"max_epochs": 0}, "max_epochs=0 must be a whole number of at least 1"),
        ({"max_epochs": 1.5}, "max_epochs=1.5 must be"),
        ({"storage": 3}, "storage=3 must be a streampack.Storage"),
        ({"storage": {"cache_dir": "x"}}, "use storage=streampack.Storage(cache_dir=...)"),
    ],
)
def test_a_value_that_a_source_cannot_have_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Source(WEB, **arguments)
    assert text in str(caught.value)


def test_a_shard_under_another_name_is_the_same_shard(tmp_path: Path) -> None:
    link = tmp_path / "link.tar"
    link.symlink_to(WEB)
    with pytest.raises(ConfigError, match=r"is in two sources, 'web' and 'copy', there as .*link.tar, and both"):
        dataset({"web": WEB, "copy": str(link)})


def test_shards_that_were_refused_are_refused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streampack.ranks.topology.may_be_distributed", lambda: True)  # nothing is listed at first
    made = dataset({"web": WEB, "copy": WEB})
    for _ in range(2):
        with pytest.raises(ConfigError, match="is in two sources"):
            made.run()


def test_sources_that_are_never_read_together_may_have_the_same_shards() -> None:
    later = streampack.Stage(at_packs=8, sources={"again": Source([WEB, CODE])}, weights={"again": 1})
    assert len(dataset({"web": WEB}, stages=[streampack.Stage(), later]).tables()) == 2
    dataset({"web": WEB, "unused": Source(WEB, 0)})


def test_an_error_of_the_shards_names_their_source() -> None:
    with pytest.raises(ShardNotFoundError, match=r"source 'code': .*/none.tar"):
        dataset({"web": WEB, "code": "/none.tar"})


def test_an_error_names_the_source_once_and_says_what_may_be_given_to_one() -> None:
    with pytest.raises(ConfigError, match="^source 'code': (?!source).* or weight and max_epochs of one of several"):
        dataset({"web": Source(WEB, 0), "code": [CODE, CODE]}).list_shards()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"epochs": 2}, "epochs=2 is passes over one source, and cannot be given with 2 sources. End the run at a num"),
        ({"num_tokens": 10, "num_packs": 10}, "num_tokens=10 and num_packs=10: give one of the two"),
        ({"num_tokens": 0}, "num_tokens=0 must be a whole number of at least 1"),
        ({"num_tokens": 1.5}, "num_tokens=1.5 must be a whole number"),
        ({"num_packs": float("inf")}, "num_packs=inf must be a whole number"),
        ({"exhausted": "stop"}, "exhausted='stop' is not known; did you mean"),
        ({"chat": "chatml"}, "chat is for conversations, and field='txt' holds none"),
    ],
)
def test_an_argument_that_does_not_fit_sources_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset({"web": WEB, "code": CODE}, **arguments)
    assert text in str(caught.value)


@pytest.mark.parametrize("budget", [{"num_tokens": 10}, {"num_packs": 10}, {"data": Source(WEB, max_epochs=2)}])
def test_epochs_beside_another_end_are_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"epochs=2 .* cannot be given with (num_tokens=10|num_packs=10|max_epochs=2)"
    ):
        dataset(**{"data": WEB, "epochs": 2, **budget})


def test_validation_is_one_epoch_of_each_source() -> None:
    made = dataset({"web": WEB, "books": Source(BOOKS, 0, max_epochs=3), "code": CODE}, part="val", fraction=0.5)
    assert [source.end_epoch for source in made.run().sources] == [1, 1, 1]
