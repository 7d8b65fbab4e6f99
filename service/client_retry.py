"""Trying again: how long to wait, for how long to go on, and which requests may be sent twice.

Called by `client_stream` and the `cli`; calls `client`, and imports nothing else of the service.

- Waits have full jitter and double from 250 ms to 10 s; they begin anew once something new came. A service
  that says when to come back (`Retry-After`) is not asked before.
- Only a POST that does the same however often it comes is made a `RepeatedPost`: a submission with an
  `Idempotency-Key`, a cancel, a resume.
- What the user has to know or to do something about (a quota, a wrong request) is not tried again.

Sources: full jitter https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/,
`Idempotency-Key` https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar

from service.client import Answer, ClientError, Dropped, Endpoint, Pacing, Refused, Unreachable

FIRST_BACK_OFF_S: Final = 0.25
LONGEST_BACK_OFF_S: Final = 10.0

_FAILURES: Final = frozenset({500, 502, 503, 504})
PASSING_STATUSES: Final = _FAILURES | {429}
"""Of a GET, or of an answer that is not the service's own: API Gateway's, a load balancer's."""

T = TypeVar("T")


class GaveUp(ClientError):
    """Nothing new came for as long as the caller allows."""


class BackOff:
    """The waits between tries.

    Args:
        retry_for_s: How long to go on trying while nothing new comes.
        pause: Told why a try ended and for how many seconds the next one waits.
    """

    def __init__(self, pacing: Pacing, retry_for_s: float, pause: Callable[[str, float], None]) -> None:
        self._pacing = pacing
        self._retry_for_s = retry_for_s
        self._pause = pause
        self._tries = 0
        self._give_up_at = 0.0

    def begin_anew(self) -> None:
        """Something new came: the next trouble is the first."""
        self._tries = 0

    def wait(self, failure: str | ClientError) -> None:
        """Wait before the next try; `failure` is text where the service itself asks for it.

        Raises:
            GaveUp: It has been tried for long enough.
        """
        pacing = self._pacing
        if self._tries == 0:  # trouble begins now, however long the stream was silent or this machine asleep
            self._give_up_at = pacing.now() + self._retry_for_s
        remaining_s = self._give_up_at - pacing.now()
        if self._tries == 0 and isinstance(failure, str):
            remaining_s = max(remaining_s, LONGEST_BACK_OFF_S)  # no trouble yet: to be told is no failure
        if remaining_s <= 0:
            raise GaveUp(f"gave up after {self._retry_for_s:g} s without anything new: {failure}")
        retry_after_s = (failure.retry_after_s or 0) if isinstance(failure, Refused) else 0
        longest_s = min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2 ** min(self._tries, 10))
        wait_s = min(max(longest_s * pacing.jitter(), retry_after_s), remaining_s)
        self._tries += 1
        self._pause(str(failure), wait_s)
        pacing.sleep(wait_s)


class RepeatedPost:
    """A POST that is sent, the same each time, until it is answered for good.

    Attributes:
        taken: Whether the service has done what was asked: "perhaps" while a try has no answer of its own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        document: Any,
        headers: Mapping[str, str],
        back_off: BackOff,
        *,
        expected: tuple[int, ...],
    ) -> None:
        self.taken: Literal["no", "perhaps", "yes"] = "no"
        self._endpoint = endpoint
        self._path = path
        self._document = document
        self._headers = headers
        self._back_off = back_off
        self._expected = expected
        self._reached = False

    def send(self) -> Answer:
        """Return the answer as soon as its headers are there.

        Raises:
            Refused: The service does not do it; trying again would not help, or not soon.
            GaveUp: No answer came, for as long as `back_off` allows.
            Unreachable: Nothing was sent.
        """
        return self._repeat(lambda answer: answer)

    def send_and_read(self) -> tuple[Answer, Any]:
        """Return the answer, closed, and its JSON (None if it is not JSON); raises like `send`."""
        return self._repeat(_read)

    def _repeat(self, use: Callable[[Answer], T]) -> T:
        while True:
            try:
                return self._try(use)
            except (Unreachable, Dropped, Refused) as exc:
                if not self._is_passing(exc):
                    raise
                failure = exc
            self._reached = True
            try:
                self._back_off.wait(failure)
            except GaveUp:
                if self.taken == "perhaps":
                    raise
                raise failure from None

    def _try(self, use: Callable[[Answer], T]) -> T:
        taken_before, self.taken = self.taken, "perhaps"  # whatever ends this try, Ctrl-C included
        try:
            answer = self._endpoint.post(self._path, self._document, self._headers, expected=self._expected)
            used = use(answer)
        except Unreachable:
            self.taken = taken_before
            raise
        except Refused as exc:
            # A problem of the service's own says that it did nothing, unless its store did not answer; a
            # gateway's failure says nothing.
            known = "code" in exc.problem and exc.problem["code"] != "store-unavailable"
            if known or exc.status not in _FAILURES:
                self.taken = taken_before
            raise
        self.taken = "yes"
        return used

    def _is_passing(self, exc: ClientError) -> bool:
        """Tell whether the same request may be answered otherwise in a while, without the user's doing."""
        if not isinstance(exc, Refused):
            return self._reached or isinstance(exc, Dropped)
        if "code" not in exc.problem:
            return exc.status in PASSING_STATUSES
        # An invocation that was started and failed is failed for good: the same key would only show it again.
        is_ours = exc.status >= 500 and "invocationId" not in exc.problem
        return is_ours and exc.problem.get("retryable") is True


def _read(answer: Answer) -> tuple[Answer, Any]:
    with answer:
        return answer, answer.document()
