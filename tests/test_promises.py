"""Every promise has a test, and every test that names a promise names one that exists.

The ids are read from the test sources, so the outcome is the same whichever tests are selected.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.promises import EDGE, IDENTITY, JOBS, METERING, PROMISES, STREAMS

TESTS = Path(__file__).parent


def carried_ids(source: str) -> set[str]:
    """Return the ids in all `pytest.mark.promise(...)`: on tests, on parameters, on modules.

    Raises:
        TypeError: An id is not a literal, so that it could not be found by reading.
    """
    ids: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
            for argument in node.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise TypeError(f"line {argument.lineno}: a promise is named by a literal")
                ids.add(argument.value)
    return ids


def carried_in_suite() -> dict[str, list[str]]:
    """Return every carried id with the test files that carry it."""
    carried: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path != Path(__file__):
            for promise_id in carried_ids(path.read_text(encoding="utf-8")):
                carried.setdefault(promise_id, []).append(path.relative_to(TESTS).as_posix())
    return carried


def test_every_promise_has_a_test() -> None:
    assert sorted(PROMISES.keys() - carried_in_suite().keys()) == []


def test_every_test_names_promises_that_exist() -> None:
    carried = carried_in_suite()

    assert {promise_id: carried[promise_id] for promise_id in carried.keys() - PROMISES.keys()} == {}


def test_promises_are_told_apart_and_say_something() -> None:
    sentences = [promise.sentence for promise in PROMISES.values()]

    assert len(PROMISES) == sum(map(len, (STREAMS, JOBS, IDENTITY, METERING, EDGE)))
    assert len(set(sentences)) == len(sentences)
    assert [promise_id for promise_id in PROMISES if not re.fullmatch(r"[a-z]+(-[a-z]+)*", promise_id)] == []
    assert [sentence for sentence in sentences if not re.fullmatch(r"[A-Z].+\.", sentence)] == []


def test_the_sources_of_promises_exist() -> None:
    sources = {promise.source for promise in PROMISES.values()}

    assert sorted(source for source in sources if not (TESTS.parent / source).is_file()) == []


def test_ids_are_found_on_tests_parameters_and_modules() -> None:
    source = """
import pytest
pytestmark = pytest.mark.promise("of-the-module")

@pytest.mark.promise("first", "second")
@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.promise("of-a-parameter"))])
def test_something(a): ...
"""

    assert carried_ids(source) == {"of-the-module", "first", "second", "of-a-parameter"}


def test_an_id_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(TypeError, match="named by a literal"):
        carried_ids("@pytest.mark.promise(SOME_ID)\ndef test_something(): ...")
