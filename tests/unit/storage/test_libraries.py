"""The private names of other libraries that the storage uses are still there, and mean what they did.

Where a test fails after an upgrade, its message names the library, the version installed, and those that it was tried
with: mend the module in streampack/storage/libraries, and add the version to its `TRIED`.
"""

import contextlib
import importlib
import importlib.metadata
import io
import re
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import google.auth.exceptions
import pytest
from botocore.response import StreamingBody
from fsspec.implementations.ftp import FTPFileSystem
from fsspec.implementations.http import HTTPFileSystem

import streampack.storage
from streampack.storage import faults
from streampack.storage.libraries import __all__ as LIBRARIES  # noqa: N812 - a constant
from streampack.storage.libraries import aiohttp as aiohttp_names
from streampack.storage.libraries import botocore as botocore_names
from streampack.storage.libraries import fsspec as fsspec_names
from streampack.storage.libraries import gcsfs as gcsfs_names

FOLDER = Path(streampack.storage.__file__).parent


@contextlib.contextmanager
def still_works(library: str) -> Iterator[None]:
    """What fails inside is told as a change of the library."""
    installed = importlib.metadata.version(library)
    tried = ", ".join(importlib.import_module(f"streampack.storage.libraries.{library}").TRIED)
    try:
        yield
    except (AttributeError, ImportError, TypeError, AssertionError) as error:
        pytest.fail(
            f"{library} {installed} has changed a private name that streampack/storage/libraries/{library}.py uses; "
            f"that was tried with {tried}. {type(error).__name__}: {error}"
        )


def test_the_failure_names_the_library_and_both_versions() -> None:
    said = r"gcsfs \S+ has changed .*tried with \S+\. AttributeError: .*gone"
    with pytest.raises(pytest.fail.Exception, match=said), still_works("gcsfs"):
        raise AttributeError("_gone")


def test_aiohttp_errors_are_known_by_their_modules() -> None:
    with still_works("aiohttp"):
        from aiohttp import ClientError, ClientHttpProxyError, ClientPayloadError, ServerTimeoutError
        from aiohttp.http_exceptions import BadStatusLine, HttpProcessingError

        assert aiohttp_names.is_garbled_answer(BadStatusLine(""))
        assert faults.kind_of(HttpProcessingError(code=400, message="garbled")) is faults.Kind.PASSING
        assert ClientHttpProxyError.__name__ == aiohttp_names.OF_PROXY
        for error in (ClientError(), ClientPayloadError(), ServerTimeoutError()):
            assert aiohttp_names.is_its_own(error)
            assert not aiohttp_names.is_garbled_answer(error)


def test_a_body_of_botocore_gives_its_response() -> None:
    raw = io.BytesIO(b"bytes")
    with still_works("botocore"):
        assert botocore_names.raw_response(StreamingBody(raw, 5)) is raw


def test_exceptions_that_are_known_by_name_have_these_names() -> None:
    with still_works("botocore"):
        botocore_own = {"NoCredentialsError", "ParamValidationError", "PartialCredentialsError", "ProfileNotFound"}
        assert botocore_own - set(dir(botocore.exceptions)) == set()
    google_own = {"DefaultCredentialsError", "RefreshError"}
    assert google_own - set(dir(google.auth.exceptions)) == set()
    assert botocore_own | google_own == faults.KNOWN_BY_NAME


def test_errors_of_botocores_own_are_told_from_those_of_the_network() -> None:
    with still_works("botocore"):
        for unusable in (
            botocore.exceptions.UnknownSignatureVersionError(signature_version="x"),
            botocore.exceptions.TokenRetrievalError(provider="sso", error_msg="x"),
        ):
            assert botocore_names.is_unusable(unusable)
            assert faults.kind_of(unusable) is faults.Kind.UNPROVEN
        for passing in (
            botocore.exceptions.EndpointConnectionError(endpoint_url="x", error="x"),
            botocore.exceptions.ReadTimeoutError(endpoint_url="x", error="x"),
            botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ):
            assert not botocore_names.is_unusable(passing)
            assert faults.kind_of(passing) is faults.Kind.PASSING


def test_fsspec_tells_what_of_a_url_is_the_filesystem_s_and_what_the_path() -> None:
    with still_works("fsspec"):
        arguments = fsspec_names.arguments_in(FTPFileSystem, "ftp://me@host:22/d/a.tar")
        assert arguments == {"host": "host", "username": "me", "port": 22}
        assert fsspec_names.path_in(FTPFileSystem, "ftp://me@host:22/d/a.tar") == "/d/a.tar"
        assert fsspec_names.path_in(HTTPFileSystem, "https://host/a.tar") == "https://host/a.tar"
        fsspec_names.forget_parent()


def test_gcsfs_has_retries_to_switch_off_and_tells_what_goes_into_a_query() -> None:
    gcsfs_names.before_import()
    from gcsfs import GCSFileSystem

    with still_works("gcsfs"):
        payer = GCSFileSystem(token="anon", project="p", requester_pays=True, skip_instance_cache=True)
        retrying = payer._request
        gcsfs_names.switch_off_retries(payer)
        assert payer._request.__func__ is type(payer)._request.__wrapped__ is not retrying.__func__
        assert gcsfs_names.query_parameters(payer) == {"userProject": "p"}
        plain = GCSFileSystem(token="anon", skip_instance_cache=True)
        assert gcsfs_names.query_parameters(plain) == {}
        assert plain._use_client_cert is False
        assert not gcsfs_names.uses_client_certificate(plain)


def test_only_these_modules_use_private_names_of_others() -> None:
    """A private name of another library is an exception to the linter's rule SLF001, so each is marked."""
    marked = {path.relative_to(FOLDER) for path in FOLDER.rglob("*.py") if "noqa: SLF001" in path.read_text("utf-8")}
    assert {path for path in marked if path.parent.name != "libraries"} == set()
    assert {path.stem for path in marked} <= set(LIBRARIES)
    for library in LIBRARIES:
        module = importlib.import_module(f"streampack.storage.libraries.{library}")
        assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in module.TRIED)
