"""Signs requests to AWS (Signature Version 4) as botocore does, at a tenth of its cost.

`models.aws_http` has one `Signer` per service and region. Pure but for the clock: the keys are the caller's,
who asks botocore for them before each request.

    POST, path, headers, sha256(body) ──> string to sign ──HMAC with the day's key──> Authorization

The key of a day (four HMACs over the secret, the day, the region and the service) is kept until the secret or
the day changes. Only what is sent by POST and without a query is signed here.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hmac
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import quote

from botocore.utils import normalize_url_path

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class Keys(Protocol):
    """Credentials at one moment: botocore's `ReadOnlyCredentials`."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def token(self) -> str | None: ...


class Signer:
    """Signs for one service in one region."""

    def __init__(self, service: str, region: str, now_s: Callable[[], float] = time.time) -> None:
        self._service = service
        self._region = region
        self._now_s = now_s
        self._key_of: tuple[str, str] | None = None
        self._key = b""

    def sign(self, path: str, headers: Mapping[str, str], body: bytes, keys: Keys) -> dict[str, str]:
        """Return the headers that a POST needs beside `headers`, all of which are signed.

        Args:
            path: As it is sent, percent-encoded.
            headers: Names in lower case, `host` among them.
        """
        moment = _moment(int(self._now_s()))
        added = {"x-amz-date": moment}
        if keys.token:
            added["x-amz-security-token"] = keys.token
        signed = sorted([*headers.items(), *added.items()])
        names = ";".join([name for name, _ in signed])
        lines = "".join([f"{name}:{' '.join(value.split())}\n" for name, value in signed])
        request = f"POST\n{_canonical(path)}\n\n{lines}\n{names}\n{sha256(body).hexdigest()}"
        scope = f"{moment[:8]}/{self._region}/{self._service}/aws4_request"
        to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_for(keys.secret_key, moment[:8]), to_sign.encode(), "sha256").hex()
        added["authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return added

    def _key_for(self, secret: str, day: str) -> bytes:
        if self._key_of != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._key_of = key, (secret, day)
        return self._key


@lru_cache(maxsize=2)
def _moment(second: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))


@lru_cache(maxsize=1024)  # one a model
def _canonical(path: str) -> str:
    return quote(normalize_url_path(path), safe="/~")
