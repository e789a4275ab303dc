"""on_error="skip" for broken shards: what is lost is skipped, and all else comes in its order on every topology."""

import contextlib
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.damage import DAMAGES, break_header, cut_short, members
from support.jobs import Corpus, Job, assert_equal, dataset, documents_of, expected, texts, write_corpus
from support.jobs import _boundary as boundary_of
from support.proxy import Fault, Proxy
from support.tars import END, entry, header, pax
from support.thorough import nightly, some

from streampack import PackedDataset, RetryPolicy
from streampack.errors import RecordError, ShardError, ShardNotFoundError, StorageError, WrongCutError
from streampack.tar import reader
from streampack.testing import ByteTokenizer

SUFFIXES = (".tar", ".tar.gz", ".tar", ".tar.zst")


def make(folder: Path) -> Corpus:
    group = texts(90, seed=5, longest=70)
    parts = (group[:40], group[40:52], group[52:80], group[80:])
    return write_corpus(folder, list(zip(SUFFIXES, parts, strict=True)), alike=True)


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "num_lanes": 4,
        "seq_len": 16,
        "shuffle": False,
        "on_error": "skip",
        "retry": RetryPolicy.immediate(),
        **changes,
    }


def lost_samples(corpus: Corpus, shard: int, sample: int, how: str, *, num_lanes: int = 4) -> list[int]:
    """From the last sample that no header follows, which may not be complete, to the end of the lane's piece."""
    path, first = corpus.shards[shard], sample - (how != "cut short")
    if path.suffix != ".tar":
        return list(range(first, len(corpus.documents[shard])))
    sizes = [each.stat().st_size for each in corpus.shards]
    start, total = sum(sizes[:shard]), sum(sizes)
    cuts = [lane * total // num_lanes - start for lane in range(num_lanes + 1)]
    ends = sorted({boundary_of(path, min(max(cut, 0), sizes[shard])) for cut in cuts} | {sizes[shard]})
    offsets = [member.offset for member in members(path)]
    end = next(end for end in ends if end > offsets[first])
    return [index for index in range(first, len(offsets)) if offsets[index] < end]


def damage(corpus: Corpus, shard: int, sample: int, how: str) -> list[str]:
    """Break a shard; the texts that are lost with it are taken out of the corpus."""
    lost = lost_samples(corpus, shard, sample, how)
    gone = [text for index in lost for text in corpus.documents[shard][index]]
    for index in lost:
        corpus.documents[shard][index] = []
    DAMAGES[how](corpus.shards[shard], sample)
    return gone


@pytest.mark.parametrize(
    ("shard", "sample", "how"),
    [
        *((0, 9, "a broken header"), (2, 1, "a block of zeros")),
        *nightly([(0, 22, "a block of zeros"), (2, 11, "a broken header")]),
    ],
)
def test_a_broken_shard_is_left_out_from_where_it_breaks_and_the_rest_keeps_its_order(
    tmp_path: Path, shard: int, sample: int, how: str
) -> None:
    corpus = make(tmp_path)
    for index in lost_samples(corpus, shard, sample, how):
        corpus.documents[shard][index] = []
    wanted = expected(corpus, 480, num_lanes=4, seq_len=16, shuffle=False)  # which looks at the shards unbroken
    DAMAGES[how](corpus.shards[shard], sample)
    data = dataset(corpus, **arguments())
    ends = []
    for plan in ([(1, 0, 1, 480)], [(2, 0, 3, 20), (1, 2, 4, 25), (4, 0, 5, 13)]):
        state, reached = None, 0
        for ranks, workers, batch_size, batches in plan:
            with Job(data, ranks, workers, batch_size, state=state) as job:
                assert_equal(job.step(batches), wanted, begin=reached)
                reached += ranks * batch_size * batches
                state, stats, digest = job.state(), job.stats(), job.digest()
        ends.append((reached, state, stats, digest))
    assert ends[0] == ends[1]
    assert ends[0][2]["bad_records"] >= 2  # once an epoch


@pytest.mark.parametrize(
    ("shard", "how"),
    # A plain tar that is cut short has other lanes; it has a test of its own.
    some([(n, how) for n in range(4) for how in DAMAGES if SUFFIXES[n] != ".tar" or how != "cut short"], 2),
)
def test_a_pass_loses_what_comes_after_the_damage_in_its_piece_and_nothing_else(
    tmp_path: Path, shard: int, how: str
) -> None:
    corpus = make(tmp_path)
    damage(corpus, shard, 6, how)
    data = dataset(corpus, **arguments(epochs=1, num_lanes=4))
    found = []
    for ranks, workers in ((2, 0), *some([(1, 3), (1, 0)], 2, first=shard % 2)):
        with Job(data, ranks, workers, 3) as job:
            packs, _ = job.run_out()
            found.append((documents_of(packs, num_lanes=4), job.stats()["bad_records"]))
    if corpus.shards[shard].suffix == ".tar":  # the sizes, and so the lanes, are those of before the damage
        assert found[0][0] == corpus.texts
    assert sorted(found[0][0]) == sorted(corpus.texts)
    assert all(each == found[0] for each in found)
    assert found[0][1] == 1


@pytest.mark.parametrize("end", [3, 11, 25])
def test_a_plain_shard_that_was_cut_short_gives_all_before_its_end(tmp_path: Path, end: int) -> None:
    corpus = make(tmp_path)
    cut_short(corpus.shards[0], end)
    with Job(dataset(corpus, **arguments(epochs=1))) as job:
        packs, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    first = [text for sample in corpus.documents[0][: end - 1] for text in sample]
    rest = [text for shard in corpus.documents[1:] for sample in shard for text in sample]
    # The sample before the one in which it ends is known to be complete: a header followed.
    assert documents_of(packs, num_lanes=4) in ([*first, *rest], [*first, *corpus.documents[0][end - 1], *rest])


def test_a_damage_at_any_header_costs_at_most_the_rest_of_two_pieces(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    good, path = corpus.shards[0].read_bytes(), corpus.shards[0]
    everything, own = corpus.texts, [text for sample in corpus.documents[0] for text in sample]
    for sample in some(range(len(own)), 5):
        path.write_bytes(good)
        break_header(path, sample)
        with Job(dataset(corpus, **arguments(epochs=1, num_lanes=6))) as job:
            packs, _ = job.run_out()
            assert 1 <= job.stats()["bad_records"] <= 2
            skipped_ranges = [
                skipped_range
                for name, each in job.state().items()
                if name.startswith("skipped_ranges.")
                for of_source in json.loads(each)
                for skipped_range in of_source
            ]
        found = documents_of(packs, num_lanes=6)
        missing = [index for index, text in enumerate(everything) if text not in found]
        assert found == [text for index, text in enumerate(everything) if index not in missing]  # order, nothing twice
        assert missing == list(range(missing[0], missing[-1] + 1))
        assert sample in missing
        assert len(missing) <= len(own) // 2
        offsets = [member.offset for member in members_of(good)]
        if skipped_ranges:  # one behind a lane's last pack is in no pack's state
            for index in missing:
                assert any(
                    first <= offsets[index] < end for _, _, shard, first, end, *_ in skipped_ranges if shard == 0
                )


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def test_a_run_that_stopped_at_a_broken_shard_goes_on_from_its_state_with_skip(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    damage(corpus, 0, 9, "a broken header")
    with Job(dataset(corpus, **arguments())) as job:
        wanted = list(job.step(100).values())
    strict = dataset(corpus, **arguments(on_error="raise"))
    state: dict[str, Any] = {}
    with Job(strict) as job, contextlib.suppress(ShardError):
        while True:
            job.step()
            state = job.state()
    assert 0 < state["global_pack"] < 100
    with Job(dataset(corpus, **arguments()), 2, state=state) as job:
        packs = job.step((100 - state["global_pack"]) // 2)
        assert_equal(packs, wanted, begin=state["global_pack"])
        assert job.stats()["bad_records"] >= 1


def test_what_was_passed_over_stays_out_though_the_shard_was_repaired(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    good = corpus.shards[2].read_bytes()
    damage(corpus, 2, 15, "a broken header")  # of a lane that goes on in the next shard
    data = dataset(corpus, **arguments(epochs=1, shuffle=True))
    strict = dataset(corpus, **arguments(epochs=1, shuffle=True, on_error="raise"))
    states: list[dict[str, Any]] = []
    packs: list[dict[int, Any]] = [{}]
    with Job(data) as job:
        states.append(job.state())
        while new := job.step():
            packs.append(packs[-1] | new)
            states.append(job.state())
    wanted = documents_of(packs[-1], num_lanes=4)
    met = [n for n, s in enumerate(states) if any(s[k] != "[[]]" for k in s if k.startswith("skipped_ranges."))]
    assert 0 < met[0] < met[-1] < len(states) - 1, "forgotten when the lane is past it"
    corpus.shards[2].write_bytes(good)
    for at in (met[0], met[-1] // 2, met[-1]):
        with Job(strict, state=states[at]) as job:
            rest, _ = job.run_out()
        assert documents_of(packs[at] | rest, num_lanes=4) == wanted


def test_the_log_says_what_was_passed_over_and_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make(tmp_path)
    damage(corpus, 2, 5, "a broken header")
    with Job(dataset(corpus, **arguments(epochs=1))) as job:
        job.run_out()
    lines = [record.getMessage() for record in caplog.records if " skips " in record.getMessage()]
    assert len(lines) == 1
    assert "skips the rest of a broken shard: " in lines[0]
    assert "002.tar, byte" in lines[0] and "checksum is wrong" in lines[0]


# --- good archives with something that cannot be read


def one_document_each(texts: list[str], zeros: int = 1024) -> bytes:
    return b"".join(entry(f"{index:03d}.txt", text.encode()) for index, text in enumerate(texts)) + bytes(zeros)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("num_lanes", [4, *nightly([1])])
def test_archives_that_were_joined_lose_nothing_but_the_seam(tmp_path: Path, suffix: str, num_lanes: int) -> None:
    groups = [texts(count, seed=count, first=100 * count, longest=60) for count in (9, 1, 14, 6)]
    compress = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.zst": zstandard.compress}[suffix]
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(b"".join(compress(one_document_each(group, 10_240)) for group in groups))
    everything = [text for group in groups for text in group]
    data = dataset([str(path)], **arguments(epochs=1, num_lanes=num_lanes))
    for pause in (0, 7, 40):
        with Job(data) as job:
            first = job.step(pause)
            state = job.state()
        with Job(data, state=state) as job:
            rest, _ = job.run_out()
            assert documents_of(first | rest, num_lanes=num_lanes) == everything
            assert job.stats()["bad_records"] == 3
    strict = dataset([str(path)], **arguments(epochs=1, num_lanes=num_lanes, on_error="raise"))
    with Job(strict) as job, pytest.raises(RecordError, match=r"joined\.tar.*: two archives in one file: .* by cat"):
        job.run_out()


def test_one_member_that_cannot_be_read_costs_one_record_and_not_the_rest_of_its_shard(tmp_path: Path) -> None:
    good = texts(40, seed=2, longest=40)
    parts = [entry(f"{index:03d}.txt", text.encode()) for index, text in enumerate(good)]
    bad = [
        header("link.txt", 0, b"2"),
        entry("twice.txt", b"old") + entry("twice.txt", b"new"),
        pax(path="n" * 5000 + ".txt") + entry("short.txt", b"x"),
        pax(comment="c" * 70_000) + entry("large.txt", b"x"),
        pax(path="") + entry("empty.txt", b"x"),
        entry("several.txt", b"1") + entry("several.1.txt", b"2"),
        entry("unknown.txt", b"x", b"Q"),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(b"".join(bad[index : index + 1]) + part for index, part in enumerate(parts)) + END)
    for num_lanes in (1, 3):
        with Job(dataset([str(path)], **arguments(epochs=1, num_lanes=num_lanes)), 1, 0, 3) as job:
            packs, _ = job.run_out()
            assert documents_of(packs, num_lanes=num_lanes) == good
            assert job.stats()["bad_records"] == len(bad)


def test_a_shard_of_which_no_file_is_a_sample_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tar").write_bytes(entry("README", b"x") + entry("part-0001", b"y") + END)
    (tmp_path / "b.tar").write_bytes(entry("README", b"x") + entry("b.txt", b"y") + END)
    with Job(dataset([f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"], **arguments(epochs=1, num_lanes=1))) as job:
        job.run_out()
    [said] = [each for each in caplog.messages if "no sample" in each]
    assert said.startswith(f"{tmp_path}/a.tar: no sample where this lane reads it, but 2 files whose names belong to")
    assert said.endswith("the first one is 'README'")


# --- what is never skipped


def test_a_missing_shard_is_never_skipped(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    data = dataset(corpus, **arguments(epochs=1))
    corpus.shards[2].unlink()
    with Job(data) as job, pytest.raises(ShardNotFoundError, match="002.tar"):
        job.run_out()


def remote(proxy: Proxy, name: str, tmp_path: Path, data: bytes) -> PackedDataset:
    (tmp_path / "m.jsonl").write_text(json.dumps({"url": f"{proxy.url}/{name}", "size": len(data)}))
    return dataset([f"@{tmp_path}/m.jsonl"], **arguments(epochs=1, num_lanes=2))


def test_failing_storage_is_never_skipped_and_a_fault_that_passes_loses_nothing(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    data = corpus.shards[0].read_bytes()
    proxy = Proxy(objects={"/a.tar": data})
    try:
        with Job(remote(proxy, "a.tar", tmp_path, data)) as job:
            job.run_out()
            quiet = job.digest(), job.stats()
        header = members_of(data)[7].offset_data - 512 + 100
        for fault in (Fault("flip", at=header), Fault("reset", 5000), Fault("status", status=503)):
            proxy.reset()
            proxy.script([fault])
            with Job(remote(proxy, "a.tar", tmp_path, data)) as job:
                job.run_out()
                assert (job.digest(), job.stats()) == quiet
                state = job.state()
                assert all(value == "[[]]" for name, value in state.items() if name.startswith("skipped_ranges."))
        proxy.always = Fault("status", status=503)
        with Job(remote(proxy, "a.tar", tmp_path, data)) as job, pytest.raises(StorageError, match="503"):
            job.run_out()
    finally:
        proxy.close()


def nested() -> bytes:
    """Samples, one of which is a tar of many samples, so that a cut in the middle falls into it."""
    inner = b"".join(entry(f"inner{number}.txt", b"not a document of its own " * 9) for number in range(40)) + END
    outer = [entry(f"a{number}.txt", f"<{number}> a text".encode() * 20) for number in range(8)]
    outer.insert(6, entry("a5b.txt", inner))
    return b"".join(outer) + END


@pytest.mark.parametrize("broken", [None, 2, 4])
def test_a_cut_into_a_tar_in_the_tar_is_never_skipped_even_after_damage(tmp_path: Path, broken: int | None) -> None:
    """The right lane would read what is no sample; only the left one can know."""
    path = tmp_path / "a.tar"
    path.write_bytes(nested())
    if broken is not None:
        break_header(path, broken)
    with Job(dataset([str(path)], **arguments(epochs=1, num_lanes=2))) as job, pytest.raises(WrongCutError) as error:
        job.run_out()
    assert '"whole": true' in str(error.value)


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_pass_that_stops_before_a_lane_arrives_at_a_cut_still_finds_that_it_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """Lane 1 begins in the inner tar; lane 2 ends long before lane 0 comes to the cut, or lane 1 to its end."""
    monkeypatch.setattr(reader, "LOOK_BYTES", 0)  # as where the inner tar is larger than what is looked at
    data = nested() + bytes(-len(nested()) % 1024)
    (tmp_path / "a.tar").write_bytes(data)
    last = entry("z.txt", b"the only text") + entry("z.bin", bytes(len(data) // 2 - 1024 - 512 - 1024)) + END
    (tmp_path / "b.tar").write_bytes(last)
    assert len(last) == len(data) // 2
    urls = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    stopping = {"epochs": 1, "num_lanes": 3, "epoch_end": "stop", "on_error": on_error}
    with Job(dataset(urls, **arguments(**stopping)), 1, 0, 3) as job:
        assert job.step(1), "packs come before the lanes are known to be wrong"
        for _ in range(2):
            with pytest.raises(WrongCutError, match='"whole": true'):
                job.run_out()
    good = [entry(f"a{number}.txt", b"a text of some length" * 9) for number in range(len(data) // 1024)]
    (tmp_path / "a.tar").write_bytes(b"".join(good)[: len(data) - 1024] + END)
    with Job(dataset(urls, **arguments(**stopping)), 1, 0, 3) as job:
        job.run_out()


# --- how much


def partly_bad(folder: Path, count: int = 80) -> Corpus:
    """Every fourth record is bad: one for three good ones."""
    group = texts(count, seed=1, longest=40)
    corpus = write_corpus(folder, [(".tar", group)])
    data = corpus.shards[0].read_bytes()
    for text in group[3::4]:
        mark = f"{text.partition('>')[0]}>".encode()
        data = data.replace(mark, b"\xff" + mark[1:])
    corpus.shards[0].write_bytes(data)
    return corpus


def documents_until_the_error(data: PackedDataset, *, pause: int = 0) -> str:
    """What the error says; `pause`: batches before a resume."""
    state = None
    if pause:
        with Job(data) as job:
            job.step(pause)
            state = job.state()
    with Job(data, state=state) as job, pytest.raises(ShardError) as error:
        job.run_out()
    return str(error.value)


@pytest.mark.parametrize("pause", [0, 1, 7, 20])
def test_a_rate_counts_the_lanes_documents_also_through_a_resume(tmp_path: Path, pause: int) -> None:
    data = dataset(partly_bad(tmp_path), **arguments(epochs=1, num_lanes=1, max_bad=0.3))
    said = documents_until_the_error(data, pause=pause)
    assert "lane 0 has skipped max_bad=0.3 bad records or shards of 33 documents; the next one is: " in said


@pytest.mark.parametrize("begin", [5, 17])
def test_a_rate_counts_the_documents_that_skip_went_past_also_through_a_resume(tmp_path: Path, begin: int) -> None:
    data = dataset(partly_bad(tmp_path), **arguments(epochs=1, num_lanes=1, max_bad=0.3))
    with Job(data) as job:
        job.loaders[0].skip(begin)
        state = job.state()
    with Job(data, state=state) as job, pytest.raises(ShardError, match="bad records or shards of 33 documents"):
        job.run_out()


def test_a_rate_that_is_kept_lets_the_run_go_on_and_the_first_record_trips_none(tmp_path: Path) -> None:
    corpus = partly_bad(tmp_path)
    with Job(dataset(corpus, **arguments(epochs=1, num_lanes=1, max_bad=0.4))) as job:
        job.run_out()
        assert job.stats()["bad_records"] == 20
    few = partly_bad(tmp_path / "few", count=40)
    with Job(dataset(few, **arguments(epochs=1, num_lanes=1, max_bad=1e-9))) as job:
        job.run_out()
        assert job.stats()["bad_records"] == 10


def test_a_number_counts_shards_too(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    damage(corpus, 0, 9, "a broken header")
    with (
        Job(dataset(corpus, **arguments(epochs=1, max_bad=0))) as job,
        pytest.raises(ShardError, match=r"max_bad=0 bad records or shards; the next one is: .*000\.tar"),
    ):
        job.run_out()


def test_lanes_that_find_every_shard_broken_end_with_an_error_and_not_in_a_loop(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 1000)
    data = PackedDataset(str(tmp_path / "a.tar"), ByteTokenizer(), 32, num_lanes=1, on_error="skip")
    with Job(data) as job, pytest.raises(ValueError, match="gives no pack"):
        job.step(1)
