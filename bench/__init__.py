"""Side-by-side measurements: what a delta costs, beside the floor and what one would build instead.

`python -m bench` measures and prints one table a scenario; README.md says what each scenario means and what
bounds it.

    load client  ->  subject (one process, core 0)  ->  fake upstream (core 1, with the client)
    load.py          subjects.py starts it              upstream.py speaks script.py

Nothing here is imported by the service.
"""
