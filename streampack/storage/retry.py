"""Retries: an action that fails is repeated after a wait, until it works, cannot work, or its budget is spent.

In: what failed, and since when a consumer waits for it. Out: a return after the wait, or the one error that says where
(URL, byte), how often and how long it was tried, what the server or library said last, and what to do.
Never: a wait that ends after the budget; failures that are still counted after a byte of progress.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from streampack import heartbeat
from streampack.errors import ShardNotFoundError, StorageError, StreampackError
from streampack.storage.clients import Clients
from streampack.storage.faults import (
    is_expired,
    is_final,
    is_missing,
    is_refused,
    lacks_credentials,
    redacted,
    retry_after_s,
    secrets_of,
    shown,
    summary,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Failures:
    """Failures of one reading since its last byte of progress."""

    def __init__(self, url: str, clients: Clients) -> None:
        self._url = url
        self._clients = clients
        self._secrets = (*clients.secrets, *secrets_of(url))
        self.clear()

    def clear(self) -> None:
        """Begin to count again, as a byte has come."""
        self._tries = 0
        self._since: float | None = None
        self._renewed = False

    def add(self, error: Exception, *, began: float, offset: int | None = None) -> None:
        """Return when it is time for the next try.

        Args:
            error: what the last try raised.
            began: when the caller began to wait, by the monotonic clock in seconds.
            offset: the byte of the object that is waited for.

        Raises:
            StorageError: another try would not help, or the budget of seconds or of tries is spent.
            ShardNotFoundError: there is no such object.
            StreampackError: `error` itself, if it is a StreampackError.
        """
        if isinstance(error, StreampackError):
            raise error
        clients, url = self._clients, redacted(self._url)
        retry, cause = clients.retry, summary(error, self._secrets)
        self._tries += 1
        self._since = began if self._since is None else self._since
        elapsed = time.monotonic() - self._since
        budget_s = retry.budget_s
        if is_final(error):
            was_good = clients.has_succeeded(self._url)
            if lacks_credentials(error) and not was_good and elapsed < retry.credentials_s:
                clients.renew(self._url)
                budget_s = min(budget_s, retry.credentials_s)
            elif not self._renewed and (is_expired(error) or (is_refused(error) and was_good)):
                self._renewed = True
                clients.num_retries += 1
                clients.renew(self._url)
                _log.warning("%s, byte %s: asking again with fresh credentials: %s", url, offset, cause)
                return
            else:
                raise self._final(error, cause, offset) from shown(error, self._secrets)
        asked_s = retry_after_s(error)
        wait = retry.wait_s(self._tries, asked_s)
        if elapsed + wait > budget_s or self._tries == retry.max_tries:
            asked = f" (server sent Retry-After: {asked_s:.0f} s)" if asked_s else ""
            raise StorageError(
                f"not a byte in {elapsed:.0f} s and {self._tries} tries, last {cause}{asked}; check the network and "
                f"the service, or allow more with RetryPolicy(budget_s=...), now {budget_s:g} s",
                url=url,
                offset=offset,
            ) from shown(error, self._secrets)
        clients.num_retries += 1
        _log.warning("%s, byte %s: try %d failed, next in %.1f s: %s", url, offset, self._tries, wait, cause)
        heartbeat.sleep(wait)

    def _final(self, error: Exception, cause: str, offset: int | None) -> StreampackError:
        url = redacted(self._url)
        if is_missing(error):
            return ShardNotFoundError(
                f"there is no such file or object ({cause}); check the URL, or take it out of the shard list",
                url=url,
                offset=offset,
            )
        return StorageError(
            f"cannot be read, and trying again would not help ({cause}); check the credentials and the other options "
            "in Storage(options=...), and what they allow",
            url=url,
            offset=offset,
        )


def persist(url: str, clients: Clients, action: Callable[[], _T]) -> _T:
    """The result of an action that asks the storage, tried again while that may help."""
    failures = Failures(url, clients)
    while True:
        began = time.monotonic()
        clients.num_requests += 1
        try:
            result = action()
        except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
            failures.add(error, began=began)
        else:
            clients.note_success(url)
            return result
        finally:
            clients.waited_s += time.monotonic() - began
