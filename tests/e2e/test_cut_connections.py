"""`headrace invoke` behind a proxy that cuts all connections to the edge: the answer is printed once.

In the suite the sizes are a fifth: a cut every 0.4 s, an answer of 12 s. `python -m
tests.e2e.test_cut_connections` runs it at full size, 2 s and 60 s, and says how often it was cut.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from local.answers import answer
from local.process import ROOT
from local.stack import Stack
from tests.e2e.client import CATALOG
from tests.e2e.cutting_proxy import CuttingProxy

MODEL = "writer-model"
LIMIT_S = 40.0
"""How long an answer may take beyond its own time."""


class Printed(NamedTuple):
    """What one `headrace invoke` left behind, and how often its connections were cut."""

    exit_code: int | None
    stdout: str
    stderr: str
    cuts: int


async def invoke(stack: Stack, *options: str, cut_after_s: float, by_reset: bool, limit_s: float) -> Printed:
    """Run the command against a stack, through a proxy of its own before the gateway."""
    async with CuttingProxy([stack.gateway.url], cut_after_s=cut_after_s, by_reset=by_reset) as proxy:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "service.cli",
                "invoke",
                "writer",
                "Count.",
                "--url",
                proxy.url + urlsplit(stack.url).path,
                *options,
            ),
            cwd=stack.directory.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(limit_s):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return Printed(process.returncode, stdout.decode(), stderr.decode(), proxy.cuts)


async def cut_and_read(
    directory: Path, *, cut_after_s: float, answer_s: float, delay_s: float
) -> tuple[str, list[Printed]]:
    """Return the answer, and what readers printed of it: one that is reset, one that is closed in order."""
    words = [f"word{number} " for number in range(round(answer_s / delay_s))]
    limit_s = answer_s + LIMIT_S
    async with Stack(directory / ".local", catalog=CATALOG, answers="scripts", services=2) as stack:
        await stack.bedrock.script(MODEL, answer(deltas=words, delay_s=delay_s))
        closed = invoke(stack, cut_after_s=cut_after_s, by_reset=False, limit_s=limit_s)
        reset = invoke(stack, "--live", cut_after_s=cut_after_s, by_reset=True, limit_s=limit_s)
        printed = list(await asyncio.gather(closed, reset))
        assert len(await stack.bedrock.account()) == len(printed)  # no try has started a second invocation
    return "".join(words) + "\n", printed


@pytest.mark.promise("reattach-exactly-once", "retry-attaches")
async def test_a_reader_whose_connections_are_all_cut_prints_the_answer_once_and_in_order(
    tmp_path: Path,
) -> None:
    whole, printed = await cut_and_read(tmp_path, cut_after_s=0.4, answer_s=12, delay_s=0.1)

    assert [(one.exit_code, one.stdout, one.stderr) for one in printed] == [(0, whole, "")] * 2
    assert all(one.cuts > 10 for one in printed)


async def main() -> None:
    """Run it at full size."""
    with tempfile.TemporaryDirectory() as directory:
        whole, printed = await cut_and_read(Path(directory), cut_after_s=2, answer_s=60, delay_s=0.25)
    for how, one in zip(("closed, written at the end", "reset, written as it came"), printed, strict=True):
        is_whole = (one.exit_code, one.stdout, one.stderr) == (0, whole, "")
        print(f"{how}: {'once and in order' if is_whole else f'WRONG {one}'}, cut {one.cuts} times")


if __name__ == "__main__":
    asyncio.run(main())
