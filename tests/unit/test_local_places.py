"""Where a stack may be: ports that are free, an environment that is clean, one stack per directory."""

import json
import os
import socket
from pathlib import Path

import pytest

from local.places import AlreadyRunning, announced, clean_environ, free_port, locked

CALLER = {
    "PATH": "/bin",
    "HEADRACE_STORE": "dynamodb",
    "AWS_PROFILE": "work",
    "AWS_SESSION_TOKEN": "t",
    "no_proxy": "a.example",
}


def test_a_child_sees_nothing_of_the_callers_settings_and_account() -> None:
    assert clean_environ(CALLER, aws=False) == {
        "PATH": "/bin",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "a.example,127.0.0.1",
        "no_proxy": "a.example,127.0.0.1",
    }


def test_a_child_that_talks_to_bedrock_sees_the_callers_account_as_it_is() -> None:
    assert clean_environ(CALLER, aws=True) == {
        name: value for name, value in CALLER.items() if name != "HEADRACE_STORE"
    }


def test_a_port_that_is_taken_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: int = server.getsockname()[1]
        given = free_port(taken, {25_000})

    assert given != taken
    assert 20_000 <= given < 32_000
    assert given != 25_000


def test_a_port_that_is_free_is_given() -> None:
    port = free_port(None, set())

    assert free_port(port, set()) == port


def test_a_directory_holds_one_stack(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(AlreadyRunning), locked(tmp_path / "lock"):
        pass
    with locked(tmp_path / "lock"):
        held_again = True

    assert held_again


def test_the_whereabouts_are_told_while_they_are_true(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    with announced(path, {"url": "http://127.0.0.1:1"}):
        told = json.loads(path.read_text())

    assert told == {"url": "http://127.0.0.1:1"}
    assert list(tmp_path.iterdir()) == []
