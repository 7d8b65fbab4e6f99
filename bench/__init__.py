"""Side-by-side measurements: what deltas, invocations and silent streams cost, beside the floor and peers.

`python -m bench` measures and publishes; README.md says what each scenario means and what bounds it.

    load client  ->  subject (one process, core 0)     ->  fake upstream (core 1, with the client)
    load.py          subjects.py, peers.py start it        upstream.py speaks script.py

    scenarios -> measuring -> loadings -> results.json -> RESULTS.md, chart.svg, docs/performance.md

Nothing here is imported by the service.
"""
