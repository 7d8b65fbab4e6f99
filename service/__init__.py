"""Headrace: a streaming gateway for long-running AI agents.

The path of one invocation, in reading order; in brackets the parts that a station calls:

     1  __main__            settings and logging; a server whose SIGTERM starts the drain
     2  app                 chooses the adapters, opens them, closes them; nothing else does
     3  edge                finds the route, sends its answer; one log line a request       [problems]
     4  api                 submit: authenticate, parse, admit, start, follow   [submission, views]
     5  identity            bearer token -> Principal, unless it is denied      [jose, keys, policies]
     6  admission           Principal and job -> Invocation with its first hold
     7  runner              owns running attempts; each ends in exactly one way [attempt, leases, takeover]
     8  runtimes.converse   turn after turn on a Model, tools in between        [metered, heard, tools]
        runtimes.python     or an author's agent, in a thread of its own        [agent_loops, watchdog]
     9  models.route        one model after the other, until one answers        [models.breaker]
        models.bedrock      ConverseStream -> batches of frames                 [the rest of models]
        models.openai_compat  or chat completions -> the same frames            [sse, pool]
    10  log                 frames -> events with ids: to readers at once, to the store in groups
    11  follow              replay, then tail -> bytes on a response            [readers, wire, presence]
    12  ledger              what was held is settled by what was used; the end is stored, then shown

The words they share: invocations, events, errors, config. What is durable: stores. What is observed:
telemetry. Which wake-ups and timers they share: beat, timeouts. What authors of agents import: agents. The
command line (cli, client) talks HTTP like any other client and imports none of these, but for the commands of
operators (operate), which go to the store.
docs/architecture.md has the same path with what the job looks like at each station.
"""
