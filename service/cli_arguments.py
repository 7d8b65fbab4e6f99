"""The arguments of the `headrace` command: what may be said, and what is wrong with the rest.

Called by `cli`. A bad value ends in argparse's usage error (exit code 2) before anything is sent. No argument
is a token: every process of the machine can read them.
"""

import argparse
import math
import re
import shlex
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import unquote

from service.client_stream import EventId

LOCAL_USER: Final = "demo"
SMOKE_PROMPT: Final = "Explain in ten long paragraphs how rivers form, and why they meander."


class Reference(NamedTuple):
    """Which invocation is meant: said as `inv_...`, `RUNTIME/inv_...` or the URL of its record."""

    url: str | None
    runtime_id: str | None
    invocation_id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        if match := re.fullmatch(
            r"(https?://.+)/runtimes/([^/]+)/invocations/(inv_[0-9A-Za-z]+)(?:/events)?", text
        ):
            return cls(match[1], unquote(match[2]), match[3])
        if match := re.fullmatch(r"(?:([^/].*)/)?(inv_[0-9A-Za-z]+)", text):
            return cls(None, match[1], match[2])
        raise argparse.ArgumentTypeError("an invocation is inv_..., RUNTIME/inv_... or the URL of its record")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` is the name of the chosen one."""
    caller, signed, remote, lasting, stream, named = _shared()
    parser = argparse.ArgumentParser(
        prog="headrace", description="Submit jobs to AI agents and read their answers."
    )
    parser.set_defaults(json=False, live=False, after=None, verbose=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("token", parents=[caller], help="print an ID token of the local stack")
    command.add_argument("--access", action="store_true", help="an access token (which the service refuses)")

    command = commands.add_parser(
        "invoke", parents=[remote, lasting, stream], help="submit a prompt, print the answer"
    )
    command.add_argument("runtime")
    command.add_argument("prompt", help="the text; - reads it from stdin")
    command.add_argument("--max-tokens", type=_count, metavar="N", help="tokens of output per model call")
    command.add_argument("--session", type=_word, metavar="ID", help="the conversation that this belongs to")
    command.add_argument("--detach", action="store_true", help="print the invocation's id and leave")
    help_text = "attach to what the same command with this key started, if it did (default: a new one)"
    command.add_argument("--idempotency-key", type=_key, metavar="KEY", help=help_text)

    command = commands.add_parser("follow", parents=[remote, lasting, stream, named], help="print an answer")
    command.add_argument("--after", type=_cursor, metavar="CURSOR", help="only what follows this event id")

    commands.add_parser("show", parents=[remote, named], help="print the record of an invocation")
    commands.add_parser("cancel", parents=[remote, lasting, named], help="end an invocation that goes on")
    commands.add_parser("resume", parents=[remote, lasting, named], help="let one that waits for quota go on")

    command = commands.add_parser("list", parents=[remote], help="print your invocations, newest first")
    command.add_argument("runtime")
    command.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (%(default)s)")
    command.add_argument("--before", type=_word, metavar="ID", help="only those older than this one")

    commands.add_parser("usage", parents=[remote], help="print what you have used and have left")
    help_text = "check a deployment from outside: refusals, streaming, resume, usage, cancel"
    _add_smoke(commands.add_parser("smoke", parents=[signed], help=help_text))
    _add_operators(commands)
    return parser


def _add_smoke(command: argparse.ArgumentParser) -> None:
    """Add what `smoke` may be told."""
    command.add_argument(
        "url", nargs="?", metavar="URL", help="the service, with its stage (default: the local stack)"
    )
    command.add_argument("--runtime", type=_word, help="the one to invoke (default: the first of yours)")
    help_text = "asks for an answer that takes seconds (default: ten paragraphs about rivers)"
    command.add_argument("--prompt", default=SMOKE_PROMPT, metavar="TEXT", help=help_text)
    help_text = "tokens of output of an answer (%(default)s); there are three"
    command.add_argument("--max-tokens", type=_count, default=256, metavar="N", help=help_text)
    help_text = "how long each answer may take (%(default)g)"
    command.add_argument("--limit", type=_seconds, default=120.0, metavar="S", help=help_text)
    help_text = "an ID token of another user, who must see nothing of yours"
    command.add_argument("--other-token-file", type=Path, metavar="FILE", help=help_text)
    command.add_argument("--json", action="store_true", help="for programs")


def _add_operators(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands of operators: they go to the store that HEADRACE_STORE names, not to the service."""
    subject = argparse.ArgumentParser(add_help=False)
    who = subject.add_mutually_exclusive_group(required=True)
    sub_help = "the user: the `sub` of its ID tokens, not its name"
    who.add_argument("sub", nargs="?", type=_subject, metavar="SUB", help=sub_help)
    who.add_argument("--origin-jti", type=_subject, metavar="JTI", help="one sign-in of a user")
    listed = argparse.ArgumentParser(add_help=False)
    listed.add_argument("--json", action="store_true", help="for programs")

    help_text = "operators: let a user or a sign-in do nothing any more, and end what it does"
    command = commands.add_parser("deny", parents=[subject], help=help_text)
    help_text = "such as 30m, 2h or 7d (default: until it is allowed)"
    command.add_argument("--for", dest="lasts_s", type=_duration_s, metavar="TIME", help=help_text)
    commands.add_parser("allow", parents=[subject], help="operators: end a denial")
    commands.add_parser("denied", parents=[listed], help="operators: print who is denied")

    command = commands.add_parser("limit", help="operators: override limits of one user")
    of_limit = command.add_subparsers(dest="limit_command", required=True, metavar="set|clear|list")
    command = of_limit.add_parser("set", help="override some limits, besides those that are")
    command.add_argument("sub", type=_subject, metavar="SUB", help=sub_help)
    help_text = "such as daily_tokens=500_000; names as in headrace.toml"
    command.add_argument("limits", nargs="+", type=_limit, metavar="NAME=NUMBER", help=help_text)
    command = of_limit.add_parser("clear", help="go back to the limits of the user's groups")
    command.add_argument("sub", type=_subject, metavar="SUB", help=sub_help)
    of_limit.add_parser("list", parents=[listed], help="print whose limits are overridden")


def again(args: argparse.Namespace, *command: str) -> str:
    """Return a command line that goes on where this one leaves, with the same endpoint and caller."""
    options = [("--url", args.url), ("--token-file", args.token_file)]
    options += [("--user", args.user if args.user != LOCAL_USER else None)]
    options += [("--group", group) for group in args.group]
    given = [part for name, value in options if value for part in (name, str(value))]
    return shlex.join(["headrace", *command, *given, *(["--token-stdin"] if args.token_stdin else [])])


def _shared() -> tuple[argparse.ArgumentParser, ...]:
    """Return the options of a caller, one with a token, a remote service, a try again, a stream and a named
    invocation."""
    caller = argparse.ArgumentParser(add_help=False)
    caller.add_argument("--user", default=LOCAL_USER, help="who you are on the local stack (%(default)s)")
    caller.add_argument("--group", action="append", default=[], help="a group of that user; may be repeated")
    caller.add_argument("-v", "--verbose", action="store_true", help="progress as plain lines on stderr")

    signed = argparse.ArgumentParser(add_help=False, parents=[caller])
    token = signed.add_mutually_exclusive_group()
    token.add_argument("--token-file", type=Path, metavar="FILE", help="holds an ID token; read again later")
    token.add_argument("--token-stdin", action="store_true", help="read the ID token from stdin")

    remote = argparse.ArgumentParser(add_help=False, parents=[signed])
    remote.add_argument("--url", help="the service, with its stage (default: the local stack)")
    remote.add_argument("--json", action="store_true", help="what the service sent, for programs")

    lasting = argparse.ArgumentParser(add_help=False)
    help_text = "give up after S seconds without anything new (%(default)g)"
    lasting.add_argument("--retry-for", type=_seconds, default=300.0, metavar="S", help=help_text)

    stream = argparse.ArgumentParser(add_help=False)
    help_text = "into a pipe or file too, write text as it comes, though a takeover may void some of it"
    stream.add_argument("--live", action="store_true", help=help_text)

    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("invocation", type=Reference.parse, help="inv_..., RUNTIME/inv_... or a record's URL")
    named.add_argument("--runtime", help="the runtime of a bare inv_...")
    return caller, signed, remote, lasting, stream, named


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _word(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise argparse.ArgumentTypeError("an id is one word of ASCII")
    return text


def _key(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise argparse.ArgumentTypeError("a key is one word of at most 255 characters of ASCII")
    return text


def _subject(text: str) -> str:
    if not 0 < len(text) <= 128 or not text.isprintable():
        raise argparse.ArgumentTypeError("a sub or origin_jti has 1 to 128 printable characters")
    return text


def _duration_s(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 2h or 7d")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def _limit(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z_]+)=([0-9]+(?:_[0-9]+)*)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a limit such as daily_tokens=500_000")
    return match[1], int(match[2])


def _cursor(text: str) -> EventId:
    try:
        return EventId.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
