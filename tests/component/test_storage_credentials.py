"""Credentials that are wrong, late, expired or secret; against a real S3 server that checks them."""

import logging
import pickle
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import servers
from support.forwarding import ForwardProxy
from support.proxy import Fault, Proxy
from support.thorough import nightly

from streampack import RetryPolicy
from streampack.errors import StorageError, StreampackError
from streampack.storage.access import StorageReader

DATA = bytes(range(256)) * 4000
QUICK = RetryPolicy(first_wait_s=0.02, max_wait_s=0.1, timeout_s=20)


@pytest.fixture(scope="module")
def url() -> str:
    return servers.put_s3("credentials/a.tar", DATA)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    running = Proxy(upstream=servers.s3().url)
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which AWS's own clients look for credentials; nothing is in it yet."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return path


def write(store: Path, key: str, secret: str) -> None:
    store.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def options(proxy: Proxy) -> dict[str, object]:
    return {"endpoint_url": proxy.url, "client_kwargs": {"region_name": "us-east-1"}}


def read(storage: StorageReader, url: str) -> bytes:
    return b"".join(storage.chunks(url, size=len(DATA), first_bytes=100_000, max_bytes=400_000))


def keys(proxy: Proxy) -> list[str]:
    """The access keys that the requests were signed with."""
    return [get.headers["Authorization"].split("Credential=")[1].split("/")[0] for get in proxy.gets]


def test_a_server_is_named_by_the_environment_alone(
    proxy: Proxy, url: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    storage = StorageReader({}, QUICK)
    assert storage.size(url) == len(DATA)
    assert read(storage, url) == DATA
    assert keys(proxy)[0] == servers.KEY


def test_expired_credentials_are_taken_anew_from_where_they_come_from(proxy: Proxy, url: str, store: Path) -> None:
    write(store, servers.KEY, servers.SECRET)
    storage = StorageReader(options(proxy), QUICK)
    chunks = storage.chunks(url, size=len(DATA), first_bytes=100_000, max_bytes=100_000)
    begun = next(chunks)
    write(store, servers.SECOND_KEY, servers.SECOND_SECRET)
    proxy.script([Fault("status", status=400, body=b"<Error><Code>ExpiredToken</Code></Error>")])
    assert begun + b"".join(chunks) == DATA
    assert keys(proxy)[:3] == [servers.KEY, servers.KEY, servers.SECOND_KEY]
    assert keys(proxy)[-1] == servers.SECOND_KEY
    assert storage.num_retries == 1


def test_a_key_that_is_withdrawn_in_the_middle_is_taken_anew(proxy: Proxy, url: str, store: Path) -> None:
    write(store, servers.KEY, servers.SECRET)
    storage = StorageReader(options(proxy), QUICK)
    chunks = storage.chunks(url, size=len(DATA), first_bytes=100_000, max_bytes=100_000)
    begun = next(chunks)
    write(store, servers.SECOND_KEY, servers.SECOND_SECRET)
    proxy.script([Fault("status", status=403, body=b"<Error><Code>InvalidAccessKeyId</Code></Error>")])
    assert begun + b"".join(chunks) == DATA
    assert keys(proxy)[-1] == servers.SECOND_KEY


def test_wrong_credentials_are_an_error_at_once(proxy: Proxy, url: str) -> None:
    storage = StorageReader({**options(proxy), "key": servers.KEY, "secret": "not-the-secret"})
    with pytest.raises(StorageError, match=r"a\.tar, byte 0: cannot be read, .*SignatureDoesNotMatch.*credentials"):
        read(storage, url)
    assert len(proxy.gets) == 1


@pytest.mark.usefixtures("store")
def test_no_credentials_are_an_error_at_once(proxy: Proxy, url: str) -> None:
    for ask in (lambda storage: read(storage, url), lambda storage: storage.size(url)):
        storage = StorageReader(options(proxy))
        with pytest.raises(StorageError, match=r"a\.tar.*no credentials were found \(NoCredentialsError: .*anon"):
            ask(storage)
        assert storage.num_retries == 0
    assert proxy.gets == []


def test_credentials_that_are_away_for_a_moment_are_waited_for_after_a_success(
    proxy: Proxy, url: str, store: Path
) -> None:
    write(store, servers.KEY, servers.SECRET)
    storage = StorageReader(options(proxy), QUICK)
    assert storage.size(url) == len(DATA)
    store.unlink()
    worker = pickle.loads(pickle.dumps(storage))
    late = threading.Timer(0.4, write, (store, servers.KEY, servers.SECRET))
    late.start()
    assert read(worker, url) == DATA
    assert worker.num_retries >= 1
    late.join()


@pytest.mark.parametrize(
    ("wrong", "given", "said"),
    [
        ("s3://no-such-bucket/a.tar", {}, r"there is no such bucket \(.*check the URL and the endpoint"),
        ("s3://shards/none.tar", {}, r"there is no such file or object"),
        ("s3://shards/credentials/a.tar", {"secret": "wrong"}, r"the storage refuses these credentials .*Storage\(opt"),
        ("s3://shards/credentials/a.tar", {"config_kwargs": {"signature_version": "x"}}, "does not work with these"),
    ],
)
def test_what_s3_refuses_for_good_is_an_error_at_once(
    wrong: str, given: dict[str, object], said: str, proxy: Proxy
) -> None:
    storage = StorageReader({**options(proxy), "key": servers.KEY, "secret": servers.SECRET, **given})
    with pytest.raises(StreampackError, match=said):
        read(storage, wrong)
    assert storage.num_retries == 0


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_objects_of_s3_and_gcs_come_through_the_proxy_of_the_environment(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers.s3() if kind == "s3" else servers.gcs()
    url = servers.put_s3("proxied/a.tar", DATA) if kind == "s3" else servers.put_gcs("proxied/a.tar", DATA)
    forward = ForwardProxy()
    monkeypatch.setenv("HTTP_PROXY", forward.url)
    for listed in ("", "127.0.0.1"):
        monkeypatch.setenv("NO_PROXY", listed)
        storage = StorageReader(server.options)
        for ask, found in ((storage.size, len(DATA)), (storage.listing, [(url, len(DATA))]), (storage.read, DATA)):
            forward.asked.clear()
            assert ask(url) == found
            assert bool(forward.asked) is not bool(listed)
    forward.close()


class TestSecrets:
    """They are shown nowhere, however it fails."""

    SECRETS = ("hush-hush-secret", "hush-hush-token")

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("status", status=403, body=b"<Error><Code>hush-hush-secret</Code>hush-hush-token</Error>"),
            Fault("status", status=503, body=b"hush-hush-secret"),
            Fault("reset", None),
        ],
        ids=["403", "503", "reset"],
    )
    @pytest.mark.parametrize("kind", ["http", "s3", *nightly(["http by fsspec", "s3 by s3fs"])])
    def test_no_error_log_or_traceback_has_one(
        self, kind: str, fault: Fault, url: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.always = fault
        secret, token = self.SECRETS
        if "http" in kind:
            url = f"{proxy.url}/shards/credentials/a.tar?X-Amz-Signature={secret}"
            given: dict[str, object] = {"headers": {"X-Own-Token": token}}
            given |= {"client_kwargs": {}} if "fsspec" in kind else {}
        else:
            given = {**options(proxy), "key": "some-key", "secret": secret, "token": token}
            given |= {"loop": None} if "s3fs" in kind else {}
        storage = StorageReader(given, RetryPolicy.immediate(3))
        with caplog.at_level(logging.INFO), pytest.raises(StorageError) as raised:
            read(storage, url)
        shown = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(storage) + str(raised.value)
        assert "a.tar" in shown
        assert not [secret for secret in self.SECRETS if secret in shown]
        assert len(proxy.gets) >= 1
