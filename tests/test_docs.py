"""The documents say what is so: names in them exist, what exists is in them, links and examples work."""

import json
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from service import cli
from service.config import Catalog, ConfigError, Settings
from service.errors import HeadraceError

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
        tree += error.__subclasses__()
        if not error.__subclasses__() and error.__module__ == HeadraceError.__module__:
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
