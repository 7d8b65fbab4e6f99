"""``python -m local``: the whole of Headrace on this machine, one screen, one Ctrl-C. `make run` calls it.

It starts a `Stack` in ``.local``, says what runs where and what to paste, and waits. Ctrl-C and SIGTERM
stop the service first, then the rest; a second one kills them. A process that dies stops everything, with
the end of its log. Whatever happens to this process, its children end with it (see `tether`).
"""

import argparse
import asyncio
import shlex
import signal
import sys
import tomllib
from pathlib import Path
from typing import Final

from local.model import ModelMissing
from local.places import AlreadyRunning
from local.process import ProcessDied
from local.stack import Stack

DIRECTORY: Final = Path(".local")
CATALOG: Final = Path("headrace.toml")
ISSUER_PORT: Final = 8081
BEDROCK_PORT: Final = 8082
SERVICE_PORT: Final = 8083
_PROMPT: Final = "Why do rivers meander?"
_ANSWERS: Final = {
    "smollm2": "Answers come from SmolLM2-135M on this machine, a demo model: fluent, often wrong.",
    "bedrock": "Answers come from Amazon Bedrock, with the AWS credentials of this shell.",
}
_ERRORS: Final = (AlreadyRunning, ModelMissing, OSError, ProcessDied, TimeoutError)


def screen(stack: Stack, token: str, catalog: Path) -> str:
    """Return what the user sees once everything runs; `token` is fresh."""
    runtime = _first_runtime(catalog)
    url = f"{stack.url}/runtimes/{runtime}/invocations"
    ask = "-H 'Content-Type: application/json' -d " + shlex.quote(f'{{"prompt":"{_PROMPT}"}}') + f" {url}"
    places = [(process.name, process.url, process.log_path.name) for process in stack.processes]
    lines = [
        f"Headrace runs on this machine. {_ANSWERS[stack.answers]}",
        "",
        *(f"  {name:<8} {address:<24} log: {DIRECTORY / log}" for name, address, log in reversed(places)),
        f"  {'store':<8} {DIRECTORY / 'headrace.db'}",
        *(f"  note: {note}" for note in stack.notes),
        "",
        "Paste this into another terminal (the token is good for an hour):",
        "",
        f"curl -N -H 'Authorization: Bearer {token}' {ask}",
        "",
        "The same with the command line, which gets its own token and reattaches when it is cut off:",
        "",
        f'{_command_line()} invoke {runtime} "{_PROMPT}"',
        "",
        "And one that is refused, because its token is none (401):",
        "",
        f"curl -i -H 'Authorization: Bearer wrong' {ask}",
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def _first_runtime(catalog: Path) -> str:
    runtimes: dict[str, object] = tomllib.loads(catalog.read_text())["runtimes"]
    return next(iter(runtimes))


def _command_line() -> str:
    script = Path(sys.executable).with_name("headrace")
    if not script.exists():
        return f"{sys.executable} -m service.cli"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


async def run(stack: Stack, catalog: Path) -> str | None:
    """Run until a signal or a death; returns what went wrong, or None after a signal."""
    running = asyncio.ensure_future(_run(stack, catalog))
    signals: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        signals.append(number)
        if len(signals) == 1:
            print("\nStopping (once more kills) ...", flush=True)
            running.cancel()
        else:
            stack.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return str(await running)
    except asyncio.CancelledError:
        return None
    except _ERRORS as error:
        return str(error)


async def _run(stack: Stack, catalog: Path) -> ProcessDied:
    async with stack:
        print(screen(stack, await stack.token(), catalog), flush=True)
        return await stack.first_death()


def main() -> int:
    """Run the stack; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m local", description="Headrace on this machine.")
    parser.add_argument("--model", choices=("smollm2", "bedrock"), default="smollm2", help="who answers")
    parser.add_argument("--port", type=int, default=8080, help="where the gateway listens")
    parser.add_argument("--catalog", type=Path, default=CATALOG, help="what is served")
    parser.add_argument(
        "--service-python", type=Path, help="the Python of another environment for the service"
    )
    arguments = parser.parse_args()
    ports = (arguments.port, ISSUER_PORT, BEDROCK_PORT, SERVICE_PORT)
    stack = Stack(
        DIRECTORY,
        catalog=arguments.catalog,
        answers=arguments.model,
        ports=ports,
        service_python=arguments.service_python,
    )
    fault = asyncio.run(run(stack, arguments.catalog))
    if fault is not None:
        print(f"local: {fault}", file=sys.stderr)
        return 1
    print("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
