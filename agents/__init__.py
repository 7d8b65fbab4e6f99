"""Your own code: the tools and agents that `headrace.toml` names, as `agents.my_tools:search`.

Empty here. What is in this folder goes into the image beside `service`, and is importable on a laptop too
(`make run`); what it needs of PyPI stands in `requirements.txt`, pinned and hashed. docs/operations.md says
more ("The image").
"""
