"""The rules of `conftest.py` hold: no network, no account, no silent skip under CI."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SKIPS = """
import pytest

def test_skips():
    pytest.skip("no Java here")

@pytest.mark.allowed_skip("macOS only")
def test_may_skip():
    pytest.skip("not macOS")

@pytest.mark.xfail(strict=True)
def test_fails_as_expected():
    assert False
"""


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "bedrock-runtime.us-east-1.amazonaws.com"])
def test_a_connection_to_another_machine_is_refused(host: str) -> None:
    with pytest.raises(RuntimeError, match="tests talk to this machine only"):
        socket.create_connection((host, 443), timeout=1.0)


def test_a_socket_to_an_address_that_was_never_looked_up_is_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
        pytest.raises(RuntimeError, match="tests talk to this machine only"),
    ):
        sock.connect(("192.0.2.1", 443))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_connection_on_this_machine_works(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5.0)
        with socket.create_connection((host, server.getsockname()[1]), timeout=5.0) as sock:
            accepted, peer = server.accept()
            accepted.close()

            assert peer == sock.getsockname()


def test_the_account_of_whoever_runs_the_tests_is_out_of_reach() -> None:
    assert {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "HEADRACE_"))} == {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [("true", "1 failed, 1 skipped, 1 xfailed, 1 error in"), ("", "3 skipped, 1 xfailed in")],
    ids=["under CI", "on a laptop"],
)
def test_a_skip_fails_under_ci_unless_it_is_allowed(tmp_path: Path, ci: str, outcome: str) -> None:
    tests, module = tmp_path / "test_skips.py", tmp_path / "test_module_skips.py"
    tests.write_text(SKIPS)
    module.write_text('import pytest\npytest.skip("no Node here", allow_module_level=True)\n')

    run = subprocess.run(
        (
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *("-c", ROOT / "pyproject.toml", "--rootdir", tmp_path),
            *("--continue-on-collection-errors", tests, module),
        ),
        cwd=ROOT,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
        timeout=50.0,
        check=False,
    )

    assert outcome in run.stdout.splitlines()[-1]
    assert ("skipped under CI" in run.stdout) == bool(ci)
