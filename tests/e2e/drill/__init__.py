"""The drill: everything happens to a deployment at once, and at the end every promise is audited.

    python -m tests.e2e.drill --seeds 10            `make drill SEEDS=10`; or --store dynamodb
       drill.py       one seed: starts, waits, gathers, audits
         |  jobs.py       what is asked for: jobs, runtime, limits; the seed decides
         |  script.py     what the upstream answers, by the request alone (runs in its process)
         |  tools.py      the tools (run in the services' processes), and their journal
         |  faults.py     kill -9, SIGSTOP, SIGCONT, SIGTERM, restarts, store, cuts: when, to whom
         |  stores.py     SQLite, which is locked; DynamoDB Local, which is stalled or cut off
         |  proxy.py      the load balancer: health checks, round robin, connections that it cuts
         |  clients.py    50 clients, written from docs/api.md alone
         |  entries.py    events as a client takes them off the wire, and the rule of `attemptRestarted`
         +-- evidence.py  what is known at the end: API, store, the upstream, journal, logs
             books.py     of that the store, read by sqlite_books.py or dynamodb_books.py
             audit.py     evidence in, faults out; pure
             figures.py   evidence in, the line of a seed and the story of an invocation out; pure

Nothing of the service is imported but `service.tools`, which the tools need, and what DynamoDB's tables look
like: clients and audit know the HTTP contract and the tables, not the code.
"""
