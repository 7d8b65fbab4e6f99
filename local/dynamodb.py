"""DynamoDB Local, AWS's own emulator, as a child that only this machine can reach and that fails on demand.

It is an optional part of the tests and never ships (see `emulators`). The fixtures of ``tests/conftest.py``
run it for a whole test session, `stack` runs services on it::

    with DynamoDbLocal(directory) as emulator:          or `async with`; the directory gets its log
        emulator.create_tables(definition, ...)
        ... emulator.url, emulator.environ
        emulator.stall(), emulator.resume()             nothing moves; nothing is lost
        emulator.cut(), emulator.mend()                 all connections break, new ones are refused

The emulator listens on every address and has no option for it, so it gets a network of its own::

    this machine's network            |  a network namespace that has only `lo`
                                      |
    127.0.0.1:PORT  <-- listener -- relay.py --> 127.0.0.1:8000  java   (loopback.py brought up `lo`)

A socket belongs to the namespace in which it was made: the listener is made here and inherited by the relay,
which runs in the namespace. Both children die with this process, however it ends. Linux only.

Source: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/DynamoDBLocal.UsageNotes.html
"""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

from local import loopback
from local.emulators import dynamodb_requirements
from local.places import clean_environ, free_port
from local.process import ROOT

_PORT: Final = 8000  # of a network that has no other servers
_BACKLOG: Final = 256
_POLL_S: Final = 0.02
_CALL_S: Final = 10.0
_TAIL_LINES: Final = 15
# Measured on two cores against the defaults: ready in half the time, half the memory, and more transactions
# per second, because it never runs long enough to earn back what the second compiler costs.
_JVM: Final = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
# Nothing on disk, one set of tables for all keys and regions, no word to AWS (which it can't reach anyway).
_OPTIONS: Final = ("-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(_PORT))
# It checks no signature, but wants to see one.
_AUTHORIZATION: Final = (
    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261121/us-east-1/dynamodb/aws4_request,"
    " SignedHeaders=host, Signature=0"
)


class EmulatorDied(Exception):
    """DynamoDB Local has ended, or never began; the text has the end of its log."""


class DynamoDbError(Exception):
    """An operation was refused: `code` is DynamoDB's (`ConditionalCheckFailedException`), `body` the rest."""

    def __init__(self, code: str, body: dict[str, Any]) -> None:
        super().__init__(f"{code}: {body.get('message') or body.get('Message')}")
        self.code = code
        self.body = body


class DynamoDbLocal:
    """A context manager, sync and async: ready when entered, nothing left behind when left but its log.

    No event loop owns it. The thread that enters it must live as long as it is needed: the kernel ends the
    emulator with that thread. Entering raises `EmulatorMissing` or `EmulatorDied`.
    """

    def __init__(self, directory: Path, *, start_s: float = 30.0) -> None:
        self.log_path = directory / "dynamodb.log"
        self._scratch = directory / "dynamodb.tmp"
        self._start_s = start_s
        self._port = free_port(None, ())
        self._namespace: tuple[str, ...] = ()
        self._java: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, the same after `mend`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The pid of the emulator itself."""
        if self._java is None:
            raise RuntimeError("the emulator does not run")
        return self._java.pid

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to use it: its address, and an account that is none."""
        return {**clean_environ({}, aws=False), "AWS_ENDPOINT_URL_DYNAMODB": self.url}

    def __enter__(self) -> Self:
        try:
            told = self._launch()
            self._await_namespace(told)
            self.mend()
            self._await_answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def __aenter__(self) -> Self:
        # The threads only wait: cancelled, they see the end of what they wait for, and end too.
        try:
            told = self._launch()
            await asyncio.to_thread(self._await_namespace, told)
            self.mend()
            await asyncio.to_thread(self._await_answer)
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    # ------------------------------------------------ what it can be asked

    def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one operation of DynamoDB's API, in the words of the wire; blocks for up to 10 s.

        Raises:
            DynamoDbError: It was refused.
            OSError: It can't be reached, or does not answer.
        """
        headers = {
            "Authorization": _AUTHORIZATION,
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Date": "20261121T164000Z",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        }
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_CALL_S)) as connection:
            connection.request("POST", "/", json.dumps(parameters), headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise DynamoDbError(str(answer.get("__type")).rpartition("#")[2], answer)
        return answer

    def create_tables(self, *definitions: Mapping[str, Any]) -> None:
        """Create tables, each as the parameters of CreateTable say; they are ACTIVE at once."""
        for definition in definitions:
            self.call("CreateTable", definition)

    def delete_tables(self, *names: str) -> None:
        """Delete tables with all that is in them."""
        for name in names:
            self.call("DeleteTable", {"TableName": name})

    # ------------------------------------------------ how it fails

    def stall(self) -> None:
        """Let nothing through from now on: connections stay, new ones are made, nobody is answered."""
        if self._relay is None:
            raise RuntimeError("what is cut off can't be stalled")
        self._relay.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._relay.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Go on after `stall`: what was on its way arrives now."""
        if self._relay is not None:
            self._relay.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """Break all connections and refuse new ones; what the emulator has already got, it carries out."""
        if self._relay is not None and self._relay.stdin is not None:
            self._relay.kill()
            self._relay.wait()
            self._relay.stdin.close()
            self._relay = None

    def mend(self) -> None:
        """Be reachable again after `cut`, at the same address and with the same tables."""
        if self._relay is not None:
            return
        pid = self.pid
        if self._ended():  # asked first: as long as nobody has, its pid is nobody else's
            raise self._death()
        # Callers that come before the relay runs wait in the listener's queue.
        with socket.create_server(("127.0.0.1", self._port), backlog=_BACKLOG) as listener:
            between = [str(listener.fileno()), str(_PORT)]
            program = [sys.executable, "-m", "local.tether", "local.relay", *between]
            command = loopback.joined(self._namespace, pid, program)
            self._relay = self._child(command, listener.fileno(), stdin=subprocess.PIPE)

    # ------------------------------------------------ how it starts and ends

    def _launch(self) -> int:
        """Start it; returns the end of a pipe from which a byte can be read once the namespace is ready."""
        jar, self._namespace = dynamodb_requirements()
        self._scratch.mkdir(parents=True, exist_ok=True)
        library = f"-Djava.library.path={jar.parent / 'DynamoDBLocal_lib'}"
        scratch = f"-Djava.io.tmpdir={self._scratch}"
        java = ["java", *_JVM, library, scratch, "-jar", str(jar), *_OPTIONS]
        told, tells = os.pipe()
        try:
            command = loopback.enclosed(self._namespace, tells, java)
            self._java = self._child(command, tells, stdin=subprocess.DEVNULL)
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tells)
        return told

    def _child(self, command: Sequence[str], inherited: int, *, stdin: int) -> subprocess.Popen[bytes]:
        environ = {**clean_environ(os.environ, aws=False), "PYTHONPATH": str(ROOT)}
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                pass_fds=[inherited],
                env=environ,
                start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor only, as in `process`
            )

    def _await_namespace(self, told: int) -> None:
        with open(told, "rb") as pipe:
            if not pipe.read(1):
                raise self._death()

    def _await_answer(self) -> None:
        give_up_at_s = time.monotonic() + self._start_s
        while not self._answers():
            if self._ended():
                raise self._death()
            if time.monotonic() > give_up_at_s:
                raise TimeoutError(f"DynamoDB Local is not ready after {self._start_s:g} s")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        try:
            self.call("ListTables", {})
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _end(self) -> None:
        self.cut()
        if self._java is not None:
            self._java.kill()
            self._java.wait()
            self._java = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _ended(self) -> bool:
        return self._java is None or self._java.poll() is not None

    def _death(self) -> EmulatorDied:
        lines = self.log_path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        log = "\n".join(f"    {line}" for line in lines)
        return EmulatorDied(f"DynamoDB Local has ended; the end of {self.log_path}:\n{log}")
