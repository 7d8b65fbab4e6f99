"""The promises of the drill, each as a function from the evidence to what breaks it. Pure.

`drill` runs `audit` at the end; `tests/unit/test_drill_audit.py` shows that each of them can fail.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from tests.e2e.drill.audit_tokens import Texts, spending_ends, the_accounts, the_bill, the_ledger
from tests.e2e.drill.entries import TERMINAL, Entry, answer_of, reassemble
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.jobs import CANARY
from tests.e2e.drill.script import HEARD
from tests.e2e.drill.tools import result_of

MAX_LOST_ATTEMPTS: Final = 3
# A job that lost as many attempts as it has has an honest ending. With these faults it is rare.
EXHAUSTED_SHARE: Final = 0.05
EXHAUSTED_FEW: Final = 4  # in a small drill one fault can strike most of the jobs


class Finding(NamedTuple):
    """A broken promise; `invocation_id` is '' where it is not one invocation's."""

    promise: str
    text: str
    invocation_id: str = ""


def audit(evidence: Evidence) -> list[Finding]:
    """Return everything that breaks a promise."""
    return [
        Finding(promise, text, invocation_id)
        for promise, broken in AUDITS.items()
        for text, invocation_id in broken(evidence)
    ]


def the_drill_itself(evidence: Evidence) -> Texts:
    """Nothing went wrong that is not one of the faults."""
    for incident in evidence.incidents:
        yield incident, ""


def one_job_once(evidence: Evidence) -> Texts:
    """Every job that a client wanted exists exactly once, and nothing else does."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for invocation_id, body in evidence.books.inputs.items():
        found[_prompt(body)].append(invocation_id)
    wanted = {wish.job.prompt: wish for wish in evidence.wishes}
    for prompt in found.keys() - wanted.keys():
        yield "nobody wanted this invocation", found[prompt][0]
    for prompt, wish in wanted.items():
        if found.get(prompt) != [wish.invocation_id]:
            yield f"its client's job {wish.job.number} is {found.get(prompt)}", wish.invocation_id
    there = {row["invocation_id"] for row in evidence.books.tables["invocations"]}
    for invocation_id in there ^ evidence.books.inputs.keys():
        yield "an invocation without its input, or the other way round", invocation_id


def one_ending(evidence: Evidence) -> Texts:
    """Every log ends with one terminal event, for the store and for each reader: it completed."""
    exhausted = 0
    for row in evidence.books.tables["invocations"]:
        invocation_id, log = row["invocation_id"], evidence.books.logs[row["invocation_id"]]
        endings = [entry for entry in log if entry.kind in TERMINAL]
        if not log or endings != [log[-1]]:
            yield f"its log has the terminal events {endings}, and ends with {log[-1:]}", invocation_id
            continue
        is_exhausted = _problem_code(log[-1]) == "attempts-exhausted"
        exhausted += is_exhausted
        if is_exhausted and _lost(evidence, invocation_id) < MAX_LOST_ATTEMPTS:
            yield "it ended with attempts-exhausted and had some left", invocation_id
        elif not is_exhausted and log[-1].kind != "invocationCompleted":
            yield f"it ended with {log[-1].event.decode()}", invocation_id
        state = "failed" if is_exhausted else "completed"
        told = evidence.records.get(invocation_id, {}).get("state")
        if (row["state"], told) != (state, state):
            yield f"its log says {state}, its row {row['state']}, the API {told}", invocation_id
    for wish in evidence.wishes:
        for reading in wish.readings:
            endings = [entry for entry in reading.entries if entry.kind in TERMINAL]
            if not endings or endings != [reading.entries[-1]]:
                yield f"a {reading.encoding} reader saw the terminal events {endings}", wish.invocation_id
    if exhausted > max(EXHAUSTED_FEW, EXHAUSTED_SHARE * len(evidence.wishes)):
        yield f"{exhausted} of {len(evidence.wishes)} jobs ran out of attempts", ""


def one_log(evidence: Evidence) -> Texts:
    """Every reader received every event that counts, once and in order, and so did the store."""
    for wish in evidence.wishes:
        stored = list(evidence.books.logs.get(wish.invocation_id, ()))
        served = list(evidence.served.get(wish.invocation_id, ()))
        if _falls_back(stored):
            yield f"the store's ids fall back: {_falls_back(stored)}", wish.invocation_id
        if served != stored:
            yield f"the API's log is not the store's: {_difference(served, stored)}", wish.invocation_id
        granted = {entry.id for entry in stored}
        for reading in wish.readings:
            who = f"a {reading.encoding} reader's"
            if _falls_back(reading.entries):
                yield f"{who} ids fall back: {_falls_back(reading.entries)}", wish.invocation_id
            counted = [entry for entry in reading.entries if entry.id in granted]
            if counted != stored:
                yield f"{who} events are not the store's: {_difference(counted, stored)}", wish.invocation_id
            mine, theirs = reassemble(reading.entries), reassemble(stored)
            if mine != theirs:
                yield f"{who} log is not the store's: {_difference(mine, theirs)}", wish.invocation_id
        answer = answer_of(reassemble(stored))
        if stored and stored[-1].kind == "invocationCompleted" and len(answer.texts) != wish.job.turns:
            yield f"its answer has {len(answer.texts)} of {wish.job.turns} turns", wish.invocation_id
        if evidence.records.get(wish.invocation_id, {}).get("result", {}).get("text") != answer.text:
            yield "the text of its record is not that of its log", wish.invocation_id


def nothing_is_held(evidence: Evidence) -> Texts:
    """No reservation is left, nothing runs, no lease is alive."""
    for row in evidence.books.tables["reservations"]:
        yield f"{row['tokens']} tokens of turn {row['turn']} are still held", row["invocation_id"]
    for sub, account in evidence.accounts.items():
        reserved = [window["reserved"] for window in account["windows"]]
        if account["runningInvocations"] or any(reserved):
            yield f"{sub} runs {account['runningInvocations']} and holds {reserved}", ""
    for row in evidence.books.tables["leases"]:
        if row["expires_at_ms"] > evidence.stopped_at_ms:
            yield f"the lease of {row['owner']} outlives its process", ""


def one_call_of_a_tool(evidence: Evidence) -> Texts:
    """A key has the same arguments whenever it comes, and a turn's results are what the tool made of them."""
    noted: dict[str, Mapping[str, Any]] = {}
    for call in evidence.noted:
        if noted.setdefault(call.key, call.arguments) != call.arguments:
            yield f"the key {call.key} has other arguments in a later call", call.key.partition(":")[0]
    for invocation_id, log in evidence.books.logs.items():
        answer = answer_of(reassemble(log))
        for turn, text in enumerate(answer.texts, 1):
            heard = [line for line in text.split("\n") if line.startswith(f"{HEARD} ")]
            asked = [use for use in answer.tool_uses if use.turn == turn - 1]
            keys = [f"{invocation_id}:{use.turn}:{use.number}" for use in asked]
            made = [
                f"{HEARD} {use.tool_use_id} success {result_of(key, use.arguments)}"
                for key, use in zip(keys, asked, strict=True)
            ]
            if heard != made:
                yield f"turn {turn} heard {heard}, the tools' results are {made}", invocation_id
            for key, use in zip(keys, asked, strict=True):
                if noted.get(key) != use.arguments:
                    yield f"the tool was not run with the arguments of {key}", invocation_id


def clean_logs(evidence: Evidence) -> Texts:
    """No process logged a fault of ours, and none logged a prompt, an answer or an argument."""
    for name, text in evidence.log_texts.items():
        if CANARY in text:
            yield f"{name} has logged content: {_around(text, CANARY)}", ""
        is_service = name.startswith("service")
        for line in text.splitlines():
            if fault := _line_fault(line) if is_service else _plain_line_fault(line):
                yield f"{name} has logged {fault}: {line[:2000]}", ""


def _line_fault(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return "a line that is no JSON"
    if fields["level"] in ("ERROR", "CRITICAL"):  # the faults of a drill are nobody's fault: warnings at most
        return f"{fields['level']} {fields['message']!r}"
    return "a stack" if "Traceback" in line else ""


def _plain_line_fault(line: str) -> str:
    return "a fault" if re.search(r"Traceback|\b(ERROR|CRITICAL)\b", line) else ""


AUDITS: Final[Mapping[str, Callable[[Evidence], Texts]]] = {
    "the drill itself": the_drill_itself,
    "one job once": one_job_once,
    "one ending": one_ending,
    "one log": one_log,
    "the ledger": the_ledger,
    "the bill": the_bill,
    "the accounts": the_accounts,
    "nothing is held": nothing_is_held,
    "one call of a tool": one_call_of_a_tool,
    "spending ends": spending_ends,
    "clean logs": clean_logs,
}


def _lost(evidence: Evidence, invocation_id: str) -> int:
    return sum(row["ended"] == "lost" for row in evidence.books.of("attempts", invocation_id))


def _prompt(body: str) -> str:
    prompt: str = json.loads(body)["messages"][0]["content"][0]["text"]
    return prompt


def _problem_code(entry: Entry) -> str:
    if entry.kind != "invocationFailed":
        return ""
    code: str = entry.value["problem"]["code"]
    return code


def _falls_back(entries: Sequence[Entry]) -> list[str]:
    return [f"{before.id}, {after.id}" for before, after in pairwise(entries) if after.id <= before.id]


def _difference(mine: Sequence[Entry], theirs: Sequence[Entry]) -> str:
    index = next(
        (index for index, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(mine), len(theirs)),
    )
    first = f"{mine[index : index + 1]} and {theirs[index : index + 1]}"
    return f"{len(mine)} and {len(theirs)} events, first apart: {first}"


def _around(text: str, needle: str) -> str:
    at = text.index(needle)
    return text[max(0, at - 200) : at + 100]
