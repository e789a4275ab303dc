"""Sizes of shards that are named one by one: few requests where a folder lists them, and the same answer everywhere."""

import logging
from collections.abc import Iterable, Sequence

import pytest

from streampack.corpus.manifest import ShardRow
from streampack.corpus.sizes import look_up_sizes
from streampack.errors import ShardNotFoundError
from streampack.storage.pages import PAGE, Listed

FOLDER = "s3://bucket/corpus/"


class Bucket:
    """Objects whose sizes are the lengths of their URLs, and how often it was asked for what."""

    def __init__(self, objects: Iterable[str], *, lists: bool = True, ignores_begin: bool = False) -> None:
        self.objects = sorted(objects)
        self.lists, self.ignores_begin = lists, ignores_begin
        self.num_pages = self.num_sizes = 0

    def size(self, url: str) -> int:
        self.num_sizes += 1
        if url not in self.objects:
            raise ShardNotFoundError("no such object", url=url)
        return len(url)

    def page_from(self, url: str) -> list[Listed] | None:
        self.num_pages += 1
        if not self.lists:
            return None
        folder = url[: url.rfind("/") + 1]
        after = [each for each in self.objects if each.startswith(folder) and (each >= url or self.ignores_begin)]
        return [Listed(each, len(each), f"v{each}") for each in after[:PAGE]]


def names(numbers: Iterable[int], folder: str = FOLDER) -> list[str]:
    return [f"{folder}{number:06d}.tar" for number in numbers]


def look_up(urls: Sequence[str], bucket: Bucket) -> list[ShardRow]:
    rows = [ShardRow(url) for url in urls]
    look_up_sizes(rows, bucket, None)
    assert [row.size for row in rows] == [len(url) for url in urls]
    return rows


@pytest.mark.parametrize(
    ("asked", "there", "most_pages", "num_sizes"),
    [
        (range(2500), range(2500), 3, 0),
        (range(1500, 0, -1), range(2500), 2, 0),  # in any order
        (range(0, 3000, 3), range(3000), 3, 0),  # every third
        (range(0, 30_000, 200), range(30_000), 1, 145),  # five on a page of a far larger folder: one page is lost
        (range(20), range(20), 0, 20),  # not worth it
    ],
)
def test_pages_tell_the_sizes_where_that_takes_fewer_requests(
    asked: Iterable[int], there: Iterable[int], most_pages: int, num_sizes: int
) -> None:
    bucket = Bucket(names(there))
    look_up(names(asked), bucket)
    assert (bucket.num_pages <= most_pages, bucket.num_sizes) == (True, num_sizes)


def test_each_folder_has_pages_of_its_own_and_what_is_below_it_is_not_taken_for_it() -> None:
    urls = [*names(range(100)), *names(range(100), f"{FOLDER}en/"), *names(range(5), f"{FOLDER}de/")]
    bucket = Bucket(urls)
    look_up(urls, bucket)
    assert (bucket.num_pages, bucket.num_sizes) == (2, 5)


def test_the_version_is_the_one_that_the_listing_tells_else_that_of_the_manifest() -> None:
    bucket = Bucket(names(range(40)))
    rows = [ShardRow(url, etag="old") for url in names(range(40))]
    look_up_sizes(rows, bucket, None)
    assert [row.etag for row in rows] == [f"v{row.url}" for row in rows]
    rows = [ShardRow(url, etag="old") for url in names(range(40))]
    bucket.lists = False
    look_up_sizes(rows, bucket, None)
    assert [row.etag for row in rows] == ["old"] * 40


@pytest.mark.parametrize("how", [{"lists": False}, {"ignores_begin": True}])
def test_where_a_listing_does_not_help_each_size_is_asked_for(how: dict[str, bool]) -> None:
    bucket = Bucket([*(f"{FOLDER}!{number}" for number in range(1500)), *names(range(300, 400))], **how)
    look_up(names(range(300, 400)), bucket)
    assert (bucket.num_pages, bucket.num_sizes) == (1, 100)


def test_shards_that_are_missing_in_a_listing_are_asked_for_and_named() -> None:
    bucket = Bucket(names(number for number in range(500) if number not in (77, 400)))
    with pytest.raises(ShardNotFoundError, match=r"2 of 500 shards are not there; the first: .*corpus/000077\.tar"):
        look_up(names(range(500)), bucket)
    assert bucket.num_sizes == 2


def test_progress_counts_both_ways() -> None:
    bucket = Bucket(names(range(100)))
    told: list[tuple[int, int]] = []
    rows = [ShardRow(url) for url in [*names(range(100)), "s3://other/a.tar"]]
    bucket.objects.append("s3://other/a.tar")
    look_up_sizes(rows, bucket, lambda done, total: told.append((done, total)))
    assert told == [(100, 101), (101, 101)]


def test_more_than_two_thousand_are_worth_a_manifest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        look_up(names(range(2000)), Bucket(names(range(2000))))
        assert caplog.messages == []
        look_up(names(range(2001)), Bucket(names(range(2001))))
    assert len(caplog.messages) == 1
    assert "the sizes of 2001 shards were looked up in" in caplog.messages[0]
    assert "(2001 of them in listings)" in caplog.messages[0]
    assert "`streampack manifest` writes them to a file once" in caplog.messages[0]


def test_a_folder_that_may_not_be_listed_is_not_tried_for_each_page() -> None:
    bucket = Bucket(names(range(30_000)), lists=False)
    bucket.size = len  # type: ignore[method-assign,assignment]
    look_up(names(range(30_000)), bucket)
    assert bucket.num_pages <= 17
