"""What Headrace guarantees: id -> sentence -> source.

A test that holds a promise carries its id: `@pytest.mark.promise("owner-only")`; one test may hold several.
`tests/test_promises.py` sees to it that every promise has a test and that no test names one that is not here.
A source is the document that lays the promise down; a new promise is written here before its test.
"""

from typing import Final, NamedTuple


class Promise(NamedTuple):
    """One guarantee: a sentence that a user would read, and where it is laid down."""

    sentence: str
    source: str


_AGENTS = "docs/agents.md"
_API = "docs/api.md"
_ARCHITECTURE = "docs/architecture.md"
_CONFIGURATION = "docs/configuration.md"
_OPERATIONS = "docs/operations.md"

STREAMS: Final = {
    "reattach-exactly-once": Promise(
        "A reader that reattaches with its cursor receives what follows it, and no event twice.", _API
    ),
    "same-events-every-cursor": Promise(
        "Every replay of an invocation's events, from whichever cursor, consists of the same bytes.", _API
    ),
    "signed-as-botocore-signs": Promise(
        "A request to AWS carries the signature that botocore makes of the same bytes.",
        "docs/decisions/0020-own-requests-to-aws.md",
    ),
    "bytes-pass-through": Promise("The bytes of the upstream's events reach the caller untouched.", _API),
    "one-terminal-event": Promise("Every log ends with exactly one terminal event.", _API),
    "terminal-after-commit": Promise(
        "A terminal event is sent only once the end of the invocation is durable.", _API
    ),
    "truncation-is-failure": Promise(
        "An upstream stream that is cut, corrupt or silent too long ends as a failure, never as success.",
        _API,
    ),
    "heartbeat-before-first-token": Promise(
        "A stream is never silent longer than the heartbeat interval, from before the first token.", _API
    ),
    "segment-ends-with-reconnect": Promise(
        "A response ends with `reconnect` and a cursor before API Gateway would cut it.", _API
    ),
    "outlasts-the-edge": Promise(
        "An answer that takes longer than API Gateway lets a response last arrives whole, once and in order.",
        _API,
    ),
    "slow-reader-bounded": Promise(
        "A reader that does not keep up costs a bounded amount of memory and delays nobody else.",
        _ARCHITECTURE,
    ),
    "leaving-readers-leave-nothing": Promise(
        "However many readers leave at once, nothing of them is left behind.", _ARCHITECTURE
    ),
    "hang-up-hurts-nobody": Promise(
        "A reader that hangs up changes nothing for the other readers.", _ARCHITECTURE
    ),
    "unread-bytes-bounded": Promise(
        "Before authentication a head is bounded in bytes and time, and so are requests that wait in line.",
        _API,
    ),
    "heads-stay-whole": Promise("No header of an answer becomes two, whatever is in its value.", _API),
    "two-encodings-one-log": Promise("SSE and NDJSON carry the same events with the same ids.", _API),
    "any-client-parses": Promise(
        "Heartbeats and frames are read by standard SSE parsers without empty or broken events.", _API
    ),
}

JOBS: Final = {
    "job-survives-reader": Promise(
        "An invocation goes on to its end when its reader leaves, and can be read afterwards.", _API
    ),
    "retry-attaches": Promise(
        "A retry with the same `Idempotency-Key` and body attaches to what the first request started.", _API
    ),
    "refusal-becomes-status": Promise(
        "An upstream's refusal within the grace before the first event becomes an HTTP status.", _API
    ),
    "falls-over-before-first-event": Promise(
        "A model that is throttled, unavailable or silent before its first event is given up for the next.",
        _CONFIGURATION,
    ),
    "half-answer-is-failure": Promise(
        "After the first event no other model is asked: an answer that breaks off ends as a failure.",
        _CONFIGURATION,
    ),
    "breaker-leaves-alone": Promise(
        "A model that fails too often is left alone by all runtimes of a process, and probed by one call.",
        _ARCHITECTURE,
    ),
    "tried-is-told": Promise(
        "The record of an invocation says which models were asked, and why each was given up.", _API
    ),
    "deadline-ends-job": Promise("No invocation runs longer than its deadline.", _CONFIGURATION),
    "tool-errors-go-to-model": Promise(
        "A tool that fails, or whose arguments break its schema, is handed back to the model as an error.",
        _ARCHITECTURE,
    ),
    "turn-limit": Promise("An agent makes at most `max_turns` model calls.", _CONFIGURATION),
    "killed-process-goes-on": Promise(
        "An invocation whose process dies or stalls goes on in another one, from its last stored turn.",
        _ARCHITECTURE,
    ),
    "handed-over-goes-on": Promise(
        "What a draining process can't finish goes on in another one at once, and is no lost attempt.",
        _ARCHITECTURE,
    ),
    "no-agent-twice": Promise(
        "A `python` agent that is not `restartable` is never run again where it may have run already.",
        _AGENTS,
    ),
    "agent-restarts": Promise(
        "A `restartable` agent runs again from its start, and voids what the attempt before it said.", _AGENTS
    ),
    "agent-output-whole": Promise(
        "Whatever part of an answer an agent yields, the log has whole messages.", _AGENTS
    ),
    "agent-output-refused": Promise(
        "An agent that yields anything but text and ConverseStream's events fails with the reason.", _AGENTS
    ),
    "agent-error-stays-inside": Promise(
        "An agent's exception is `agent-failed` on the wire; its stack is in the log alone.", _AGENTS
    ),
    "agent-stops-in-time": Promise(
        "An agent that is cancelled has `cleanup_s` to end; then it is left behind and writes no more.",
        _AGENTS,
    ),
    "agent-blocks-only-itself": Promise(
        "An agent that blocks its loop is named in the log within 2 s, and delays no other stream.", _AGENTS
    ),
    "agent-refused-at-start": Promise(
        "What is no async generator function of one argument stops the start, with the reason.", _AGENTS
    ),
    "attempts-limit": Promise("An invocation that three processes have lost without a turn is ended.", _API),
    "lapsed-lease-sends-nothing": Promise(
        "Past its lease a process sends no event until it has renewed it; what a fenced-out one writes is"
        " never read.",
        _ARCHITECTURE,
    ),
    "lapsed-lease-spends-nothing": Promise(
        "Past its lease a process starts no model call and no tool until it has renewed it.", _ARCHITECTURE
    ),
    "no-tool-twice": Promise(
        "A tool that is not idempotent is never run again where it may have run already.", _ARCHITECTURE
    ),
    "tool-key-stable": Promise(
        "A tool that is run again gets the same arguments and the same idempotency key.", _CONFIGURATION
    ),
    "cancel-reaches-everything": Promise(
        "A cancellation reaches model call and tools within 2 s, whichever process was asked.", _API
    ),
    "abandoned-job-cancelled": Promise(
        'With `on_disconnect = "cancel"` an invocation that nobody reads any more is cancelled.',
        _CONFIGURATION,
    ),
    "pauses-at-quota": Promise(
        "An invocation that meets its quota between turns waits with its state intact, and goes on.", _API
    ),
    "fair-share": Promise("One principal's burst never takes all of a process.", _ARCHITECTURE),
    "sheds-before-work": Promise(
        "A process that can take no more says so before it has done any work.", _API
    ),
    "process-ends-in-time": Promise(
        "A process ends within 120 s of its first SIGTERM, whatever happens.", _ARCHITECTURE
    ),
    "sigterm-reconnects-readers": Promise(
        "On SIGTERM every reader gets `reconnect` with its cursor, and no new invocation is admitted.", _API
    ),
}

IDENTITY: Final = {
    "id-token-only": Promise(
        "Only a valid ID token of the configured issuer and clients is accepted; every other token is 401.",
        _API,
    ),
    "edge-refuses-first": Promise(
        "Without a valid ID token of the deployment's clients nothing gets through the edge to the service.",
        _ARCHITECTURE,
    ),
    "wycheproof": Promise(
        "No JWS of the Wycheproof vectors that is invalid, or signed with anything but RS256, is accepted.",
        _API,
    ),
    "owner-only": Promise("A principal never reads, or learns of, another's invocation.", _API),
    "group-only": Promise(
        "A runtime exists only for the groups that it names; to everybody else it is 404.", _API
    ),
    "token-expiry-ends-reader": Promise(
        "An expired token ends its reader with `reconnect` after the grace, and never the job.", _API
    ),
    "denied-is-refused": Promise(
        "A principal, or a sign-in, that is denied gets 403 from every process, within 10 s of the denial.",
        _API,
    ),
    "denied-ends-readers": Promise(
        "The open streams of who is denied end with `streamEnded` within 35 s of the denial.", _API
    ),
    "denied-cancels-jobs": Promise(
        "What a principal, or a sign-in, has submitted is cancelled when it is denied, and not run again.",
        _API,
    ),
    "denial-outlasts-outage": Promise(
        "No denial lapses because the store does not answer, and nobody is let in before it was asked.",
        _OPERATIONS,
    ),
}

METERING: Final = {
    "quota-exact-under-concurrency": Promise(
        "Of N parallel submissions at the edge of a quota exactly as many are admitted as fit.", _ARCHITECTURE
    ),
    "concurrency-limit": Promise(
        "A principal never runs more invocations at once than its limit.", _CONFIGURATION
    ),
    "budget-per-invocation": Promise(
        "An invocation never starts a model call that its token budget can't cover.", _CONFIGURATION
    ),
    "override-counts": Promise(
        "A limit that is overridden for a principal counts within 30 s, for its next turn too.", _OPERATIONS
    ),
    "agent-calls-metered": Promise(
        "Every model call of an agent is held, made and settled as a turn, however its agent leaves it.",
        _AGENTS,
    ),
    "settle-exactly-once": Promise(
        "The usage of a model call is recorded exactly once, however often its settlement is tried.",
        _ARCHITECTURE,
    ),
    "usage-after-hangup": Promise(
        "The usage of an invocation whose caller hung up is settled.", _ARCHITECTURE
    ),
    "usage-equals-metadata": Promise(
        "What `GET /usage` reports equals, to the token, what the model reported in its `metadata` events.",
        _API,
    ),
    "given-up-calls-metered": Promise(
        "A call that was given up after it may have cost tokens is held for and charged, besides the turn's.",
        _ARCHITECTURE,
    ),
    "cache-metered-apart": Promise(
        "Tokens read from a prompt cache and tokens written to it are metered apart from other input.", _API
    ),
    "unreported-usage-estimated": Promise(
        "A call whose usage the upstream never reported is settled to an estimate that is marked as one.",
        _ARCHITECTURE,
    ),
    "store-down-fails-closed": Promise(
        "While the store can't answer, nothing is admitted: the caller gets 503.", _API
    ),
    "killed-process-consistent-store": Promise(
        "A process that is killed leaves a store in which every decision is whole.", _ARCHITECTURE
    ),
}

EDGE: Final = {
    "problem-documents-everywhere": Promise(
        "Every error is a problem document with a stable code, and nothing foreign is in it.", _API
    ),
    "body-limit-while-reading": Promise(
        "A body over the limit is refused while it is being read, not after.", _API
    ),
    "bad-input-refused": Promise(
        "Input that is not documented is refused before anything is reserved, with the place that is wrong.",
        _API,
    ),
    "wrong-template-found": Promise(
        "A template whose edge does not stream, protect, validate or lead to the service fails a test.",
        _ARCHITECTURE,
    ),
    "no-content-in-logs": Promise(
        "No token, prompt, tool argument or completion appears in any log line.", _ARCHITECTURE
    ),
    "keys-stay-private": Promise(
        "An upstream's API key stands in no file, log line or error, and goes nowhere public without TLS.",
        _CONFIGURATION,
    ),
    "operators-need-the-store-only": Promise(
        "The operator's commands work while no process of the service runs.", _OPERATIONS
    ),
    "image-asks-for-nothing": Promise(
        "The image serves on a read-only root, without user or capabilities, and has nothing that installs.",
        _OPERATIONS,
    ),
    "smoke-finds-what-is-broken": Promise(
        "The smoke test succeeds only if all that it asks for was seen to hold, and shows no token.",
        _OPERATIONS,
    ),
    "options-sent-exactly": Promise(
        "What a runtime asks of its model is sent upstream exactly, and nothing that it does not ask for.",
        _CONFIGURATION,
    ),
    "unknown-names-stop-start": Promise(
        "An unknown or bad setting stops the start, with all faults listed.", _CONFIGURATION
    ),
}

PROMISES: Final[dict[str, Promise]] = STREAMS | JOBS | IDENTITY | METERING | EDGE
