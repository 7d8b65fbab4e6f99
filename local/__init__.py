"""Everything AWS does for the service, on one machine: real processes on loopback, real wire formats.

::

    python -m local                                     one screen, one Ctrl-C
       stack.py     starts, watches and stops them; the e2e tests use it too
         |  process.py   one child process: its log file, its signals, its end
         |  tether.py    runs inside each child and ends it when its parent is gone
         |  places.py    its ports, its environment, the file that says where it is
         |
         +-- gateway.py    API Gateway and load balancer, from the synthesized template: where callers begin
         |     gateway.json           the API part of the template; `make synth` writes it
         |     gateway_api.py         what stands in it: methods, authorizers, limits
         |     gateway_request.py     sizes, validation, what the backend gets of a request
         |     gateway_authorizer.py  whose ID tokens get past
         |     gateway_transfer.py    answers: streamed or buffered, cut at their time
         |     gateway_balancer.py    which process gets a request
         |     gateway_pace.py        requests and bytes a second
         |     gateway_refusals.py    what it answers itself
         +-- issuer.py     Cognito: ID and access tokens, JWKS
         +-- bedrock.py    Bedrock's runtime endpoint: POST /model/{modelId}/converse-stream
         |     http_server.py  HTTP/1.1 with control over every byte written
         |     converse.py     what Converse accepts, and the words with which it refuses
         |     model.py        a small real model (SmolLM2-135M in llama.cpp)
         |     playbook.py     which script answers which call, and the signals they wait for
         |     scripts.py      answers as data: events, delays, barriers, exceptions, cuts
         |     answers.py      the usual ones: text, a tool call, a refusal
         |     body.py         frames in, HTTP chunks out, in the pieces that a script asks for
         |     eventstream.py  application/vnd.amazon.eventstream frames
         |     account.py      what was generated per call: the other half of a metering test
         |     control.py      the endpoint's test controls, from another process
         +-- dynamodb.py   DynamoDB Local (optional, for tests), where only this machine can reach it
         |     emulators.py    what it needs of the machine
         |     loopback.py     the network of its own in which it runs
         |     relay.py        the way in, which can be stalled and cut
         +-- python -m service   the service itself, configured through its environment only

Nothing here imports the service and the service imports nothing from here.
"""
