"""Bodies of submit requests and what becomes of them; shared by the tests of `service.submission`."""

import base64
import json
from typing import Any

import pytest

from service.config import RuntimeConfig
from service.errors import InvalidRequest
from service.submission import Submission, parse_submission

RUNTIME = RuntimeConfig("writer", "converse", max_output_tokens=4096)
PNG = base64.b64encode(b"\x89PNG").decode()


def parsed(body: Any) -> Submission:
    return parse_submission(body if isinstance(body, bytes) else json.dumps(body).encode(), RUNTIME)


def fault(body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parsed(body)
    return caught.value.detail


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def image(**changes: Any) -> dict[str, Any]:
    return {"image": {"format": "png", "source": {"bytes": PNG}} | changes}


def document(**changes: Any) -> dict[str, Any]:
    return {"document": {"format": "pdf", "name": "Report", "source": {"bytes": PNG}} | changes}


TEXT = {"text": "Hello"}
