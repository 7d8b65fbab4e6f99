"""The operator's commands: what they write into the store, what they say, and what they refuse to do."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from service.cli_arguments import arguments
from service.operate import Done, NotDone, operate
from service.stores import Denial, Policies, Store
from service.stores.sqlite import SqliteStore
from tests.clock import START_AT_MS
from tests.command_line import CommandLine, Outcome
from tests.fakes import FaultyStore

HOUR_MS: Final = 3_600_000
ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """A terminal whose environment names the store of a service that is down."""
    asyncio.run(stored(tmp_path / "headrace.db"))
    monkeypatch.setenv("HEADRACE_STORE", "sqlite:headrace.db")
    return CommandLine(tmp_path, monkeypatch, capsys)


async def stored(path: Path) -> Policies:
    """Return what the service would read from the file, made if it is not there."""
    async with SqliteStore.open(path) as store:
        return await store.policies(START_AT_MS)


def policies(terminal: CommandLine) -> Policies:
    return asyncio.run(stored(terminal.folder / "headrace.db"))


def at_fixed_time(terminal: CommandLine, *argv: str) -> Done:
    environ = {"HEADRACE_STORE": f"sqlite:{terminal.folder / 'headrace.db'}"}
    return operate(arguments().parse_args(argv), environ, now_s=lambda: START_AT_MS / 1000)


# ------------------------------------------------------------ deny, allow


@pytest.mark.promise("operators-need-the-store-only")
@pytest.mark.parametrize(
    ("who", "subject"), [(("user-1",), "sub:user-1"), (("--origin-jti", "jti-1"), "origin_jti:jti-1")]
)
def test_a_denial_is_in_the_store_until_it_is_taken_back(
    terminal: CommandLine, who: tuple[str, ...], subject: str
) -> None:
    denied, after_deny = terminal.run("deny", *who), policies(terminal)
    allowed, after_allow = terminal.run("allow", *who), policies(terminal)
    again = terminal.run("allow", *who)

    until = "until it is allowed again; its streams and jobs end within 35 s"
    assert denied == Outcome(0, f"{subject} is denied {until}\n", "")
    assert list(after_deny.denied) == [subject]
    assert (allowed, after_allow) == (Outcome(0, f"{subject} is allowed again\n", ""), Policies())
    assert again == Outcome(0, f"{subject} was not denied\n", "")


@pytest.mark.parametrize(("lasts", "lasts_h"), [("7200s", 2), ("90m", 1.5), ("2h", 2), ("7d", 168)])
def test_a_denial_may_end_by_itself(terminal: CommandLine, lasts: str, lasts_h: float) -> None:
    at_fixed_time(terminal, "deny", "user-1", "--for", lasts)

    assert policies(terminal).denied == {
        "sub:user-1": Denial(START_AT_MS, START_AT_MS + int(lasts_h * HOUR_MS))
    }


def test_who_is_denied_since_when_and_until_when_is_listed(terminal: CommandLine) -> None:
    at_fixed_time(terminal, "deny", "user-2")
    said = at_fixed_time(terminal, "deny", "--origin-jti", "jti-1", "--for", "2h")
    done = at_fixed_time(terminal, "denied")

    until = "2026-11-21T18:40:00.000Z"
    assert said.rows == [(f"origin_jti:jti-1 is denied until {until}; its streams and jobs end within 35 s",)]
    assert done.rows == [
        ("SUBJECT", "SINCE", "UNTIL"),
        ("origin_jti:jti-1", "2026-11-21T16:40:00.000Z", until),
        ("sub:user-2", "2026-11-21T16:40:00.000Z", "-"),
    ]
    assert done.document == {
        "denied": [
            {"subject": "origin_jti:jti-1", "since": "2026-11-21T16:40:00.000Z", "until": until},
            {"subject": "sub:user-2", "since": "2026-11-21T16:40:00.000Z", "until": None},
        ]
    }


def test_lists_are_tables_for_people_and_json_for_programs(terminal: CommandLine) -> None:
    empty = terminal.run("denied")
    terminal.run("deny", "user-1")
    terminal.run("limit", "set", "user-1", "daily_tokens=5")
    denied, limits = terminal.run("denied", "--json"), terminal.run("limit", "list", "--json")

    assert empty == Outcome(0, "SUBJECT  SINCE  UNTIL\n", "")
    assert [entry["subject"] for entry in json.loads(denied.stdout)["denied"]] == ["sub:user-1"]
    assert json.loads(limits.stdout) == {"limits": {"user-1": {"daily_tokens": 5}}}


# ------------------------------------------------------------ limits


@pytest.mark.promise("operators-need-the-store-only")
def test_limits_are_overridden_one_by_one_and_cleared_together(terminal: CommandLine) -> None:
    first = terminal.run("limit", "set", "user-1", "daily_tokens=500_000", "concurrent_invocations=0")
    second = terminal.run("limit", "set", "user-1", "daily_tokens=7")
    terminal.run("limit", "set", "user-2", "monthly_tokens=1", "invocation_tokens=2")
    after_set, listed = policies(terminal), terminal.run("limit", "list")
    cleared = terminal.run("limit", "clear", "user-1")

    rest = "and else the limits of its groups\n"
    assert first == Outcome(0, f"user-1 has concurrent_invocations=0 daily_tokens=500000, {rest}", "")
    assert second == Outcome(0, f"user-1 has concurrent_invocations=0 daily_tokens=7, {rest}", "")
    assert after_set.limits == {
        "user-1": {"daily_tokens": 7, "concurrent_invocations": 0},
        "user-2": {"monthly_tokens": 1, "invocation_tokens": 2},
    }
    assert listed == Outcome(
        0,
        "SUB     OVERRIDDEN\n"
        "user-1  concurrent_invocations=0 daily_tokens=7\n"
        "user-2  invocation_tokens=2 monthly_tokens=1\n",
        "",
    )
    assert cleared == Outcome(0, "user-1 has the limits of its groups again\n", "")
    assert policies(terminal).limits.keys() == {"user-2"}


def test_limits_are_checked_as_those_of_the_catalog_are(terminal: CommandLine) -> None:
    outcome = terminal.run("limit", "set", "user-1", "hourly_tokens=1", "concurrent_invocations=1000001")

    assert outcome == Outcome(
        2,
        "",
        "headrace: limit.hourly_tokens is not known; known here: concurrent_invocations, daily_tokens,"
        " invocation_tokens, monthly_tokens\n"
        "headrace: limit.concurrent_invocations must be a whole number from 0 to 1e+06, not 1000001\n",
    )
    assert policies(terminal) == Policies()


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({}, "HEADRACE_STORE is not set"),
        ({"HEADRACE_STORE": "postgres:"}, "HEADRACE_STORE must be "),
        ({"HEADRACE_STORE": "sqlite::memory:"}, "HEADRACE_STORE: there is no file :memory:; name the one"),
        ({"HEADRACE_STORE": "sqlite:typo.db"}, "HEADRACE_STORE: there is no file typo.db; name the one"),
        ({"HEADRACE_STORE": "sqlite:not-ours.db"}, "the store not-ours.db is not an SQLite database"),
    ],
)
def test_a_store_that_is_not_the_services_is_not_written(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], fault: str
) -> None:
    (terminal.folder / "not-ours.db").write_text("something else, long enough to be looked at" * 9)
    monkeypatch.delenv("HEADRACE_STORE")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    outcome = terminal.run("deny", "user-1")

    assert (outcome.exit_code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert outcome.stderr.startswith(f"headrace: {fault}")
    assert not (terminal.folder / "typo.db").exists()


def test_all_other_settings_of_the_service_may_be_there(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ISSUER", "https://issuer.example")
    monkeypatch.setenv("HEADRACE_AUDIENCES", "client-1")
    monkeypatch.setenv("HEADRACE_PORT", "8080")

    assert terminal.run("deny", "user-1").exit_code == 0


def test_a_store_that_does_not_answer_is_no_misuse(terminal: CommandLine) -> None:
    @asynccontextmanager
    async def away(_: str) -> AsyncIterator[Store]:
        async with SqliteStore.open(":memory:") as opened:
            faulty = FaultyStore(opened)
            faulty.down = True
            yield faulty.as_store

    args = arguments().parse_args(["deny", "user-1"])
    with pytest.raises(NotDone) as caught:
        operate(args, {"HEADRACE_STORE": f"sqlite:{terminal.folder / 'headrace.db'}"}, open_store=away)

    assert caught.value.faults == ("The store does not answer",)
    assert not caught.value.is_misuse


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["deny"], "one of the arguments SUB --origin-jti is required"),
        (["deny", "user-1", "--origin-jti", "jti-1"], "not allowed with argument"),
        (["allow", ""], "a sub or origin_jti has 1 to 128 printable characters"),
        (["deny", "x" * 129], "a sub or origin_jti has 1 to 128 printable characters"),
        (["deny", "user\n1"], "a sub or origin_jti has 1 to 128 printable characters"),
        (["deny", "user-1", "--for", "2"], "'2' is not a time such as 90s, 30m, 2h or 7d"),
        (["deny", "user-1", "--for", "0h"], "'0h' is not a time such as 90s, 30m, 2h or 7d"),
        (["limit"], "the following arguments are required: set|clear|list"),
        (["limit", "set", "user-1"], "the following arguments are required: NAME=NUMBER"),
        (["limit", "set", "user-1", "daily_tokens"], "is not a limit such as daily_tokens=500_000"),
        (["limit", "set", "user-1", "daily_tokens=-1"], "is not a limit such as daily_tokens=500_000"),
        (["limit", "set", "user-1", "daily_tokens=5_"], "is not a limit such as daily_tokens=500_000"),
    ],
)
def test_what_means_nothing_is_a_usage_error(
    terminal: CommandLine, capsys: pytest.CaptureFixture[str], argv: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        terminal.run(*argv)

    assert caught.value.code == 2
    assert fault in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert policies(terminal) == Policies()


def test_the_commands_of_users_load_nothing_of_the_service() -> None:
    program = """
import sys
from service.cli import main
try:
    main(["usage", "--help"])
except SystemExit:
    print("loaded", sorted({"service.app", "service.operate", "starlette"} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )

    assert run.stdout.splitlines()[-1] == "loaded []"
