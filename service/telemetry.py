"""Telemetry: two canonical log lines, one per HTTP request and one per finished attempt, as JSON on stdout.

`__main__` configures logging, `app` hands `Telemetry` to who observes. The only module that knows Powertools:
its formatter makes every record of the standard `logging` one JSON object, fields beside the constant
message. Its `Logger` and `Metrics` keep state per process or class and were made for one invocation at a
time, so they are not used.

No prompt, tool argument, completion, token or raw header is ever a field.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

REQUESTS: Final = logging.getLogger("headrace.request")
ATTEMPTS: Final = logging.getLogger("headrace.attempt")


class Telemetry:
    """Writes the canonical lines."""

    def request_finished(self, fields: Mapping[str, Any]) -> None:
        """One HTTP request was answered; `fields` are the middleware's."""
        REQUESTS.info("request", extra=_named(fields))

    def attempt_finished(self, fields: Mapping[str, Any]) -> None:
        """One attempt has ended; `fields` are the runner's."""
        ATTEMPTS.info("attempt", extra=_named(fields))


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}


def configure_logging(stream: TextIO = sys.stdout) -> None:
    """Send every log record of the process to `stream`, one JSON object a line."""
    formatter = LambdaPowertoolsFormatter(
        service="headrace", utc=True, log_record_order=["timestamp", "level", "message"], location=None
    )
    output = logging.StreamHandler(stream)
    output.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)
    # uvicorn says what `__main__` says better; AWS's libraries log request bodies at DEBUG.
    for name in ("uvicorn", "botocore", "aiobotocore", "aioboto3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
