"""The operator's commands: who is denied, and whose limits are overridden. They act on the store itself.

`cli` calls it, and imports it only for such a command. Like `app`, whose `open_store` it uses, it composes:
the environment names the store as it does for the service. So it works while no process of the service runs,
with the operator's own permissions on the store, and the API has no route for what only operators may do.
Every process reads what is decided here within 10 s (`policies`).
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.app import open_store
from service.config import ConfigError, Limits, Settings
from service.config_reader import Reader
from service.errors import StoreUnavailable
from service.invocations import timestamp
from service.policies import SIGN_IN, USER
from service.stores import Policies, Store

# What the service must have, and no command here reads: an operator need not set it.
_NOT_NEEDED: Final = {"HEADRACE_ISSUER": "https://issuer.invalid", "HEADRACE_AUDIENCES": "none"}


class NotDone(Exception):
    """Nothing was changed, or nobody knows (`is_misuse` False: the store did not answer)."""

    def __init__(self, *faults: str, is_misuse: bool = True) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
        self.is_misuse = is_misuse


@dataclass(frozen=True, slots=True)
class Done:
    """What a command has to show: rows for people, the same as a JSON document for programs."""

    rows: list[tuple[str, ...]]
    document: dict[str, Any]


def operate(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    open_store: Callable[[str], AbstractAsyncContextManager[Store]] = open_store,
    now_s: Callable[[], float] = time.time,
) -> Done:
    """Carry out one command, as `cli_arguments` has parsed it.

    Raises:
        NotDone: It is not configured or was not given as it must be, or the store does not answer.
    """
    overrides = _overrides(args)
    try:
        store = Settings.from_env(_NOT_NEEDED | dict(environ)).store
        _check_there(store)
        return asyncio.run(_operate(args, overrides, open_store(store), int(now_s() * 1000)))
    except ConfigError as error:
        raise NotDone(*error.faults) from error
    except StoreUnavailable as error:
        raise NotDone(str(error), is_misuse=False) from error


async def _operate(
    args: argparse.Namespace,
    overrides: Mapping[str, int],
    opening: AbstractAsyncContextManager[Store],
    now_ms: int,
) -> Done:
    async with opening as store:
        if args.command == "limit":
            return await _limit(store, args, overrides, now_ms)
        if args.command == "denied":
            return _denied(await store.policies(now_ms))
        subject = USER + args.sub if args.sub else SIGN_IN + args.origin_jti
        if args.command == "deny":
            until_ms = None if args.lasts_s is None else now_ms + args.lasts_s * 1000
            await store.deny(subject, now_ms, until_ms)
            until = "it is allowed again" if until_ms is None else timestamp(until_ms)
            return _done(f"{subject} is denied until {until}; its streams and jobs end within 35 s")
        was_denied = await store.allow(subject)
        return _done(f"{subject} is allowed again" if was_denied else f"{subject} was not denied")


async def _limit(store: Store, args: argparse.Namespace, overrides: Mapping[str, int], now_ms: int) -> Done:
    if args.limit_command == "list":
        limits = (await store.policies(now_ms)).limits
        rows = [(sub, _shown(limits[sub])) for sub in sorted(limits)]
        return Done([("SUB", "OVERRIDDEN"), *rows], {"limits": limits})
    if args.limit_command == "clear":
        await store.set_limits(args.sub, None)
        return _done(f"{args.sub} has the limits of its groups again")
    await store.set_limits(args.sub, overrides)
    own = (await store.policies(now_ms)).limits.get(args.sub, {})
    return _done(f"{args.sub} has {_shown(own)}, and else the limits of its groups")


def _done(text: str) -> Done:
    return Done([(text,)], {"done": text})


def _denied(policies: Policies) -> Done:
    denials = [
        {
            "subject": subject,
            "since": timestamp(denial.since_ms),
            "until": None if denial.until_ms is None else timestamp(denial.until_ms),
        }
        for subject, denial in sorted(policies.denied.items())
    ]
    rows = [tuple(str(value or "-") for value in denial.values()) for denial in denials]
    return Done([("SUBJECT", "SINCE", "UNTIL"), *rows], {"denied": denials})


def _shown(limits: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(limits.items()))


def _overrides(args: argparse.Namespace) -> Mapping[str, int]:
    """Return the limits that are to be overridden, checked as those of the catalog are."""
    given = dict(getattr(args, "limits", ()))
    reader = Reader()
    reader.table("limit", given, Limits, {})
    if reader.faults:
        raise NotDone(*reader.faults)
    return given


def _check_there(store: str) -> None:
    """Refuse a file that is not there: the store would make it, and the service would read another one."""
    path = store.removeprefix("sqlite:")
    if path != store and not Path(path).is_file():
        raise ConfigError([f"HEADRACE_STORE: there is no file {path}; name the one that the service has"])
