"""What a fault that does not pass is called in our own words, and what its reader can do.

In: the error of a library, its kind, the URL. Out: two texts of `StorageError`; the library's own words stand beside
them, never alone.
"""

import errno
import re
import socket
from typing import NamedTuple

from streampack.storage import descriptors, proxies
from streampack.storage.faults import (
    Kind,
    causes,
    fails_tls,
    has_unknown_host,
    lacks_credentials,
    statuses,
    tunnel_status,
)
from streampack.storage.redaction import named

_OPTIONS = "Storage(options=...)"
_ENDPOINT = f"which is AWS_ENDPOINT_URL, or endpoint_url in {_OPTIONS}"


class Explanation(NamedTuple):
    """What is wrong, and what to do about it."""

    what: str
    remedy: str


_ERRNO = {
    errno.ENAMETOOLONG: Explanation(
        "the name is longer than a path can be",
        "give the path or URL of a shard; where this is a document, write it into a shard first",
    ),
    errno.EISDIR: Explanation("it is a directory", "a directory of shards is given with a '/' at its end"),
    errno.ENOTDIR: Explanation("a part of the path is a file, not a directory", "check the path"),
    errno.ELOOP: Explanation("its symbolic links lead in a circle", "check the links"),
}
_STATUS = {
    401: Explanation(
        "the storage does not accept these credentials",
        f"check the credentials and the other options in {_OPTIONS}, and whether they have expired",
    ),
    403: Explanation(
        "the storage refuses these credentials",
        f"check the credentials and the other options in {_OPTIONS}, and what they allow",
    ),
    407: Explanation(
        "the proxy asks for credentials", "give them in HTTP_PROXY or HTTPS_PROXY: http://user:password@host:port"
    ),
}
_REDIRECTED = Explanation(
    "the server sends the request elsewhere",
    f"check the URL, the region (AWS_REGION, or client_kwargs={{'region_name': ...}} in {_OPTIONS}) and the endpoint, "
    f"{_ENDPOINT}",
)
_NOT_ACCEPTED = Explanation("the server does not accept the request", f"check the URL and the options in {_OPTIONS}")
_NOT_DONE = Explanation(
    "the server, or a proxy before it, does not serve such requests", "check host, port and protocol in the URL"
)
_PROXY_REMEDY = "check HTTP_PROXY and HTTPS_PROXY, or list the URL's host in NO_PROXY"
_NO_CREDENTIALS = Explanation(
    "no credentials were found",
    f"give them in {_OPTIONS}, in the environment, or in the files of the AWS or Google tools before the program "
    'starts; for public data {"anon": True} (S3) or {"token": "anon"} (GCS)',
)
_UNKNOWN_HOST = Explanation(
    "no such host is known", f"check the host in the URL, or the endpoint_url in {_OPTIONS}, and the name server (DNS)"
)
_TLS = Explanation(
    "TLS cannot be agreed on with the server, or its certificate is not trusted",
    "check that the address speaks https and the host is the right one, and give the authority that signed its "
    "certificate in SSL_CERT_FILE (S3: AWS_CA_BUNDLE)",
)
_UNUSABLE = Explanation(
    "the storage's client does not work with these options and what is found on this machine",
    f"check the options in {_OPTIONS}, the profile, the region, and the files of the AWS or Google tools",
)
_NOT_READABLE = Explanation("this user may not read it", "check the permissions of the file and of its folders")
_NO_LIBRARY = Explanation(
    "a library is missing that reads it", "install it; extras are streampack[s3], streampack[gcs] and streampack[http]"
)
_NOT_TAKEN = Explanation(
    "the URL or a storage option is not what the storage's client takes", f"check the URL and the options in {_OPTIONS}"
)
_NO_NAME_SERVER = "the name server (DNS) does not answer"
_NOBODY = "nothing accepts connections there"


def explain(error: BaseException, kind: Kind, url: str) -> Explanation:
    """The texts for an error that is given up."""
    if kind is Kind.SHORTAGE:
        return _shortage(error)
    if kind is Kind.MISSING:
        return _missing(error, url)
    if kind is Kind.AWAY:
        return _away(error, url)
    if kind is Kind.EXPIRED:
        return _STATUS[401]
    proxy = _proxy_for(url)
    if proxy and any(tunnel_status(link) not in (None, 407) for link in causes(error)):
        return Explanation(f"the proxy {proxy} refuses to lead to the host", _PROXY_REMEDY)
    if proxy and has_unknown_host(error):  # that of the URL is for the proxy to find
        return Explanation(f"no host is known by the name in the proxy {proxy}", _PROXY_REMEDY)
    answered = _explain_answer(error, kind)
    return _local(error, kind) if answered is None else answered._replace(remedy=answered.remedy + by_way_of(url))


def _explain_answer(error: BaseException, kind: Kind) -> Explanation | None:
    if found := statuses(error):
        if found[0] >= 500:
            return _NOT_DONE
        return _STATUS.get(found[0], _REDIRECTED if found[0] < 400 else _NOT_ACCEPTED)
    if lacks_credentials(error):
        return _NO_CREDENTIALS
    if has_unknown_host(error):
        return _UNKNOWN_HOST
    if fails_tls(error):
        return _TLS
    return _UNUSABLE if kind is Kind.UNPROVEN else None


def by_way_of(url: str) -> str:
    """More for a remedy: the proxy of the environment; "" where it names none for the URL."""
    proxy = _proxy_for(url)
    return f"; the environment names the proxy {proxy} for it (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)" if proxy else ""


def _proxy_for(url: str) -> str | None:
    proxy = proxies.proxy_of(url)
    return None if proxy is None else named(proxy)


def _local(error: BaseException, kind: Kind) -> Explanation:
    chain = list(causes(error))
    for link in chain:
        if isinstance(link, OSError) and link.errno in _ERRNO:
            return _ERRNO[link.errno]
    if kind is Kind.REFUSED:  # a remote storage says so with a status, or in words of its library
        is_local = any(isinstance(link, OSError) and link.errno in (errno.EACCES, errno.EPERM) for link in chain)
        return _NOT_READABLE if is_local else _STATUS[403]
    return _NO_LIBRARY if any(isinstance(link, ImportError) for link in chain) else _NOT_TAKEN


def _missing(error: BaseException, url: str) -> Explanation:
    if any("NoSuchBucket" in str(link) or "bucket does not exist" in str(link) for link in causes(error)):
        return Explanation("there is no such bucket", f"check the URL and the endpoint, {_ENDPOINT}")
    slipped = re.match(r"([a-z][a-z0-9+]*):/?(?!/)", url)
    hint = f" (a storage is named with two slashes: {slipped[1]}://)" if slipped else ""
    if url.startswith("memory://"):
        hint = " (memory:// is in one process only: workers have one of their own, so use num_workers=0)"
    return Explanation("there is no such file or object", f"check the URL{hint}, or take it out of the shard list")


def _away(error: BaseException, url: str) -> Explanation:
    is_dns = any(isinstance(link, socket.gaierror) for link in causes(error))
    remedy = (
        f"check host and port in the URL, or endpoint_url in {_OPTIONS}, whether the server runs, and whether this "
        "machine reaches it"
    )
    return Explanation(_NO_NAME_SERVER if is_dns else _NOBODY, remedy + by_way_of(url))


def _shortage(error: BaseException) -> Explanation:
    numbers = {link.errno for link in causes(error) if isinstance(link, OSError)}
    if errno.ENFILE in numbers:
        return Explanation(
            "this machine has no file descriptor left", "raise fs.file-max (sysctl), or end what keeps files open"
        )
    if errno.EMFILE in numbers or descriptors.are_used_up():
        limit = descriptors.limit()
        return Explanation(
            f"all {limit} file descriptors that `ulimit -n` allows this process are open",
            f"raise the limit (`ulimit -n {max(65536, 2 * limit)}` before the start; LimitNOFILE= of systemd, --ulimit "
            f"of docker), or look in /proc/PID/fd for what is left open: streampack keeps at most "
            f"{descriptors.MOST_KEPT} shards open in a process",
        )
    return Explanation(
        "this process or machine has no memory, or may start no more threads",
        "give it more (`ulimit -u`, the limits of the container), or use fewer workers and a smaller "
        "Limits(buffer_bytes=...)",
    )
