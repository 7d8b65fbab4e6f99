"""The documents say what is so: names in them exist, what exists is in them, links and examples work."""

import asyncio
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from local.answers import answer
from local.scripts import Delay, Wait
from local.stack import Stack
from service import cli
from service.config import Catalog, ConfigError, Settings
from service.errors import HeadraceError
from tests.cli_server import CliServer, control, delta, document, stream
from tests.e2e.client import CATALOG, calling
from tests.e2e.cutting_proxy import CuttingProxy

ROOT: Final = Path(__file__).parents[1]
REQUIRED: Final = {
    "README.md",
    "CHANGELOG.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/glossary.md",
}
PATHS: Final = [
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "tests/*.md")
    for path in sorted(ROOT.glob(pattern))
]
DOCUMENTS: Final = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
# What was, or is to come, may be named by the documents that tell of it.
PRESENT: Final = {
    name: text
    for name, text in DOCUMENTS.items()
    if name != "CHANGELOG.md" and not name.startswith("docs/decisions/")
}
ALL_PRESENT: Final = "\n".join(PRESENT.values())

WORDS: Final = [f"word{number} " for number in range(30)]
SAMPLE_LIMIT_S: Final = 45.0
# What the page or the program around a documented client has, and what it does with it: URL and token are
# its arguments, and it prints how the job ended and what was said.
CALLERS: Final = {
    "python": (
        [sys.executable, "-"],
        """
import sys
print(json.dumps(answer(sys.argv[1], "writer", {"prompt": "Count."}, lambda: sys.argv[2])))
""",
    ),
    "js": (
        ["node", "--input-type=module", "-"],
        """
const [url, token] = process.argv.slice(2);
let shown;
const show = (text) => { shown = text; };
const last = await answer(url, "writer", { prompt: "Count." }, async () => token, show);
console.log(JSON.stringify([last.type, shown]));
""",
    ),
}

_FENCE: Final = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE: Final = re.compile(r"`([^`\n]+)`")
_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(<?([^)\s>]+)>?\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def fences(text: str, language: str) -> list[str]:
    """Return the contents of the fenced blocks of one language."""
    return [body for name, body in _FENCE.findall(text) if name == language]


def commands_in(text: str, program: str) -> set[str]:
    """Return the first arguments of a program's calls in code: `make test` gives test."""
    code = [line for _, body in _FENCE.findall(text) for line in body.splitlines()]
    code += _INLINE.findall(_FENCE.sub("", text))
    call = re.compile(
        rf"(?:^|[|;&(] *|\$ +)(?:\S*/)?{program}(?: +-\S+| +[A-Z]+=\S+)* +([a-z][a-z-]*)(?=[\s;&|)]|$)"
    )
    return {name for line in code for name in call.findall(line.strip())}


def anchors(text: str) -> set[str]:
    """Return the anchors that hosting sites make of headings: lower case, with dashes."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def settings() -> set[str]:
    """Return the names of all settings, as the refusal of an unknown one lists them."""
    with pytest.raises(ConfigError) as refused:
        Settings.from_env({"HEADRACE_NO_SUCH_SETTING": "1"})
    listed = next(fault for fault in refused.value.faults if "NO_SUCH_SETTING" in fault)
    return set(re.findall(r"HEADRACE_\w+", listed)) - {"HEADRACE_NO_SUCH_SETTING"}


def error_codes() -> set[tuple[str, int]]:
    """Return code and status of each leaf of the error tree."""
    found, tree = set(), [HeadraceError]
    while tree:
        error = tree.pop()
        below = [each for each in error.__subclasses__() if each.__module__ == HeadraceError.__module__]
        tree += below
        if not below:
            found.add((error.code, error.status))
    return found


def test_the_documents_are_there() -> None:
    assert sorted(REQUIRED - DOCUMENTS.keys()) == []


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    named = set(re.findall(r"HEADRACE_[A-Z_]+[A-Z]", ALL_PRESENT))

    assert named - settings() == set()
    assert settings() - set(re.findall(r"HEADRACE_\w+", DOCUMENTS["docs/configuration.md"])) == set()


def test_every_make_target_is_documented_and_every_documented_one_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert commands_in(ALL_PRESENT, "make") | {"help"} == targets


def test_every_command_is_documented_and_every_documented_one_exists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z][a-z-]*)  ", capsys.readouterr().out, re.MULTILINE)

    assert commands_in(ALL_PRESENT, "headrace") == set(listed) != set()


def test_the_api_document_lists_exactly_the_error_codes() -> None:
    rows = re.findall(r"^\| *`([a-z-]+)` *\| *(\d{3}) *\|", DOCUMENTS["docs/api.md"], re.MULTILINE)

    assert {(code, int(status)) for code, status in rows} == error_codes()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_within_the_repository_resolve(name: str) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", DOCUMENTS[name])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_parse(name: str) -> None:
    for example in fences(DOCUMENTS[name], "json"):
        json.loads(example)
    for example in fences(DOCUMENTS[name], "toml"):
        catalog = tomllib.loads(example)
        if {"upstreams", "runtimes"} <= catalog.keys():
            Catalog.from_document(catalog)


def test_the_catalog_of_the_repository_is_valid() -> None:
    assert Catalog.load(ROOT / "headrace.toml").runtimes


def test_commands_are_found_in_code_only() -> None:
    text = """
Please make sure that `make test` passes, or make it so. `make --silent bench`, `make http://x`, `remake it`.

```sh
$ make run MODEL=bedrock
curl localhost | headrace invoke writer "make haste"
make setup && .venv/bin/headrace --json show inv_1
```
"""

    assert commands_in(text, "make") == {"test", "bench", "run", "setup"}
    assert commands_in(text, "headrace") == {"invoke", "show"}


def test_anchors_are_those_of_headings() -> None:
    text = "# The HTTP `API`, in short\n```sh\n# not a heading\n```\n## 2. Errors & codes\n"

    assert anchors(text) == {"the-http-api-in-short", "2-errors--codes"}


async def run_sample(language: str, url: str, token: str) -> asyncio.subprocess.Process:
    """Start the client that the API's document shows in a language, against the service at `url`."""
    command, caller = CALLERS[language]
    process = await asyncio.create_subprocess_exec(
        *command,
        url,
        token,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write("\n".join([*fences(DOCUMENTS["docs/api.md"], language), caller]).encode())
    process.stdin.close()
    return process


@pytest.mark.promise("reattach-exactly-once", "retry-attaches", "killed-process-goes-on")
@pytest.mark.parametrize("language", CALLERS)
async def test_the_documented_clients_survive_cut_connections_and_killed_processes(
    language: str, tmp_path: Path
) -> None:
    command, _ = CALLERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    slow = answer(deltas=WORDS, delay_s=0.05).insert(0, Delay(0.5))  # the POST is cut before it is answered
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack) as ann,
        CuttingProxy([stack.gateway.url], cut_after_s=0.2) as proxy,
        asyncio.timeout(SAMPLE_LIMIT_S),
    ):
        await stack.bedrock.script("writer-model", slow.insert(20, Wait("never")), slow)
        client = await run_sample(language, proxy.url + urlsplit(stack.url).path, ann.token)
        await stack.bedrock.account(waiting="never")
        await asyncio.gather(*(service.kill() for service in stack.services))
        await asyncio.gather(*(service.start() for service in stack.services))
        stdout, stderr = await client.communicate()
        _, page = await ann.get("/runtimes/writer/invocations")

    assert (json.loads(stdout or "null"), stderr) == (["invocationCompleted", "".join(WORDS)], b"")
    assert [[each["end"] for each in record["attempts"]] for record in page["invocations"]] == [
        ["lost", "finished"]
    ]
    assert proxy.cuts > 2


@pytest.mark.promise("reattach-exactly-once")
@pytest.mark.parametrize("language", CALLERS)
async def test_the_documented_clients_end_when_nothing_can_follow_their_cursor(language: str) -> None:
    command, _ = CALLERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    first = stream(delta("1.2", "Hel"), location="/runtimes/writer/invocations/inv_1")
    empty = stream(control("heartbeat", phase="connected"))
    more, no_more = (document({"terminalEvent": {"id": event_id}}) for event_id in ("1.9", "1.2"))
    with CliServer(first, empty, more, empty, no_more) as server:
        async with asyncio.timeout(SAMPLE_LIMIT_S):
            client = await run_sample(language, server.url, "token")
            stdout, stderr = await client.communicate()

    assert (json.loads(stdout or "null"), stderr) == (["contentBlockDelta", "Hel"], b"")
    assert [cursor for _, _, cursor in server.essences] == [None, *["1.2"] * 4]
