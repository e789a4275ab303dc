"""Retries: an action that fails is repeated after a wait, until it works, cannot work, or its budget is spent.

What may help, and for how long, is the rule in `faults`.

In: what failed, and since when a consumer waits for it. Out: a return after the wait, or the one error that says where
(URL, byte), how often and how long it was tried, what the server or library said last, and what to do.
Never: a wait that ends after the budget; a budget that is given up early because the next wait would be long; failures
that are still counted after a byte of progress; a wait in a thread whose answer nobody waits for any more (`threads`).
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from streampack.errors import ShardNotFoundError, StorageError, StreampackError
from streampack.metrics import clock
from streampack.storage import threads
from streampack.storage.clients import Clients, local_path
from streampack.storage.faults import SHORTAGE_S, Kind, kind_of, retry_after_s
from streampack.storage.pacing import asked_since, in_turn
from streampack.storage.redaction import named, secrets_of, shown, summary
from streampack.storage.remedies import by_way_of, explain

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SHORT_WAIT_S = 0.5


class Failures:
    """Failures of one reading since its last byte of progress."""

    def __init__(self, url: str, clients: Clients, *, doing: str = "read") -> None:
        self._url = url
        self._doing = doing
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
            began: when the caller began to wait for an answer, by the monotonic clock in seconds; a pause before the
                request (`pacing`) is no wait for the storage.
            offset: the byte of the object that is waited for; None: no byte, but a size or a listing.

        Raises:
            StorageError: another try would not help, or the budget of seconds or of tries is spent.
            ShardNotFoundError: there is no such object.
            StreampackError: `error` itself, if it is a StreampackError.
        """
        if isinstance(error, StreampackError):
            raise error
        clients, retry = self._clients, self._clients.retry
        kind, cause = kind_of(error), summary(error, self._secrets)
        self._tries += 1
        self._since = began if self._since is None else self._since
        elapsed = time.monotonic() - self._since
        budget_s = self._budget_s(kind)
        where = named(self._url) if offset is None else f"{named(self._url)}, byte {offset}"
        if budget_s is None:
            if not self._may_renew(kind):
                raise self._final(error, kind, cause, elapsed, offset) from shown(error, self._secrets)
            self._renewed = True
            clients.num_retries += 1
            clients.renew(self._url)
            _log.warning("%s: asking again with fresh credentials: %s", where, cause)
            return
        asked_s = retry_after_s(error)
        wait = retry.wait_s(self._tries, asked_s)
        if budget_s < retry.budget_s:  # a short one: not spent in a few long waits
            wait = min(wait, _SHORT_WAIT_S)
        left = budget_s - elapsed  # before the last try all of it is waited, if not asked to wait longer
        if left <= 0 or asked_s > left or self._tries == retry.max_tries:
            raise self._spent(error, kind, cause, elapsed, offset) from shown(error, self._secrets)
        if kind is Kind.SHORTAGE:
            clients.free_descriptors()
        elif kind is Kind.UNPROVEN:
            clients.renew(self._url)
        wait = min(wait, left)
        clients.num_retries += 1
        _log.warning("%s: try %d failed, next in %.1f s: %s", where, self._tries, wait, cause)
        threads.pause(wait)

    def _budget_s(self, kind: Kind) -> float | None:
        """Seconds for which the rule of `faults` has it tried again; None: not for a time."""
        retry, was_reached = self._clients.retry, self._clients.has_succeeded(self._url)
        match kind:
            case Kind.PASSING:
                return retry.budget_s
            case Kind.AWAY:
                return retry.budget_s if was_reached else min(retry.budget_s, self._start_s())
            case Kind.UNPROVEN:
                return retry.budget_s if was_reached else None
            case Kind.SHORTAGE:
                return min(retry.budget_s, SHORTAGE_S)
        return None

    def _start_s(self) -> float:
        """What is left of the seconds at the start: they are those of a place, not of each question to it."""
        assert self._since is not None, "a try has failed"
        return self._clients.retry.start_s - (self._since - self._clients.first_away(self._url, self._since))

    def _may_renew(self, kind: Kind) -> bool:
        """Whether it is tried once more, with new clients and so with credentials from where they come from."""
        if self._renewed or local_path(self._url) is not None:
            return False
        return kind is Kind.EXPIRED or (kind is Kind.REFUSED and self._clients.has_succeeded(self._url))

    def _spent(
        self, error: Exception, kind: Kind, cause: str, elapsed: float, offset: int | None
    ) -> StorageError:
        """The error for a budget that is spent."""
        retry = self._clients.retry
        asked_s = retry_after_s(error)
        asked = f" (server sent Retry-After: {asked_s:.0f} s)" if asked_s else ""
        what, remedy = "", f"check the network and the service{by_way_of(self._url)}"
        more = f"or allow more with RetryPolicy(budget_s=...), now {retry.budget_s:g} s"
        if kind is not Kind.PASSING:
            what, remedy = explain(error, kind, self._url)
            what = f"{what}; "
            if kind is Kind.SHORTAGE:
                more = ""
            elif kind is Kind.AWAY and not self._clients.has_succeeded(self._url):
                more = f"or wait longer at the start with RetryPolicy(start_s=...), now {retry.start_s:g} s"
        awaited = "an answer" if offset is None else "a byte"
        return StorageError(
            f"{what}not {awaited} in {elapsed:.0f} s and {_count(self._tries)}, last {cause}{asked}; "
            + ", ".join(filter(None, (remedy, more))),
            url=named(self._url),
            offset=offset,
        )

    def _final(
        self, error: Exception, kind: Kind, cause: str, elapsed: float, offset: int | None
    ) -> StreampackError:
        """The error for what another try would not change."""
        what, remedy = explain(error, kind, self._url)
        if kind is Kind.MISSING:
            return ShardNotFoundError(f"{what} ({cause}); {remedy}", url=named(self._url), offset=offset)
        return StorageError(
            f"cannot be {self._doing}, and trying again would not help: {what} ({cause}; {_count(self._tries)} in "
            f"{elapsed:.1f} s); {remedy}",
            url=named(self._url),
            offset=offset,
        )


def _count(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries} tries"


def persist(
    url: str, clients: Clients, action: Callable[[], _T], *, is_request: bool = True, doing: str = "read"
) -> _T:
    """The result of an action that asks the storage, tried again while that may help.

    `is_request`: False where a client is made, which proves nothing and is not counted, and may fail all the same.
    `doing`: what is done with the object, for errors.
    """
    failures = Failures(url, clients, doing=doing)
    while True:
        threads.check()
        began = time.monotonic()
        clients.num_requests += is_request
        try:
            result = clock.waited(in_turn, url, clients, action) if is_request else clock.waited(action)
        except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
            failures.add(error, began=asked_since(began))
        else:
            if is_request:
                clients.note_success(url)
            return result
        finally:
            clients.waited_s += time.monotonic() - began
