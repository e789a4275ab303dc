"""Pages of a listing that begin at a name, from real servers: the sizes and versions that single requests tell."""

from typing import Any

import pytest
from support import servers

from streampack import RetryPolicy
from streampack.corpus.resolve import resolve_shards
from streampack.storage.access import StorageReader

FOLDERS = {"s3": "s3://shards/pages/", "gcs": "gs://shards/pages/"}


@pytest.fixture(params=FOLDERS, scope="module")
def place(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A folder with 40 shards and what else may be in one, and the options that reach it."""
    server, put = {"s3": (servers.s3, servers.put_s3), "gcs": (servers.gcs, servers.put_gcs)}[request.param]
    for number in range(40):
        put(f"pages/{number:03d}.tar", bytes(number + 1))
    for name in ("pages/0.tar", "pages/009/below.tar", "pages/zz é.txt", "pages2/000.tar"):
        put(name, b"x")
    return FOLDERS[request.param], server().options


def test_a_page_begins_at_a_name_and_tells_what_single_requests_tell(place: tuple[str, dict[str, Any]]) -> None:
    folder, options = place
    reader = StorageReader(options, RetryPolicy.immediate())
    page = reader.page_from(f"{folder}007.tar")
    assert page is not None
    names = [*(f"{number:03d}.tar" for number in range(7, 40)), "zz é.txt"]
    assert [each.url for each in page] == [folder + name for name in names]
    assert [each.size for each in page] == [*range(8, 41), 1]
    for each in page[:2]:
        assert (reader.size(each.url), reader.etag(each.url)) == (each.size, each.version)


def test_braces_take_few_requests(place: tuple[str, dict[str, Any]]) -> None:
    folder, options = place
    reader = StorageReader(options, RetryPolicy.immediate())
    table = resolve_shards(f"{folder}{{000..039}}.tar", reader)
    assert table.sizes.tolist() == list(range(1, 41))
    assert all(shard.etag for shard in table)
    assert reader.num_requests == 1


def test_where_folders_may_not_be_listed_each_size_is_asked_for(place: tuple[str, dict[str, Any]]) -> None:
    folder, options = place
    reader = StorageReader(options, RetryPolicy.immediate())
    assert reader.page_from(f"{folder.replace('shards', 'no-such-bucket')}000.tar") is None
    assert StorageReader().page_from("/data/a.tar") is None
    assert StorageReader().page_from("https://host/a.tar") is None
    assert StorageReader().page_from(f"simplecache::{folder}a.tar") is None
