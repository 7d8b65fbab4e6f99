"""What verifying an ID token costs: `python -m bench.tokens` prints it as JSON.

`loadings` runs it on the subject's core. Tokens are those of the local issuer, each of another user; a first
sight is a signature, claims and an entry in the cache, a verified one a look into that cache. CPU time of
this process, divided by the number of tokens; no server is in it.
"""

import asyncio
import json
import time

from local.issuer import AUDIENCE, Issuer
from service.identity import Identity

_TOKENS = 2_000
_ROUNDS = 10


async def measure() -> dict[str, float]:
    """Microseconds of CPU for a token that is new, and for one that was verified before."""
    issuer = Issuer()
    keys = json.dumps(issuer.jwks()).encode()

    async def fetch_jwks() -> bytes:
        return keys

    bearers = [f"Bearer {issuer.id_token(f'user-{number}', groups=['bench'])}" for number in range(_TOKENS)]
    identity = Identity(
        issuer=issuer.url,
        audiences=[AUDIENCE],
        fetch_jwks=fetch_jwks,
        now_s=time.time,
        cached_tokens=_TOKENS,
    )
    await identity.start()

    began_ns = time.process_time_ns()
    for bearer in bearers:
        await identity.authenticate(bearer)
    first_ns = time.process_time_ns() - began_ns

    began_ns = time.process_time_ns()
    for _ in range(_ROUNDS):
        for bearer in bearers:
            await identity.authenticate(bearer)
    again_ns = time.process_time_ns() - began_ns
    return {"first_us": first_ns / _TOKENS / 1e3, "verified_us": again_ns / (_TOKENS * _ROUNDS) / 1e3}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
