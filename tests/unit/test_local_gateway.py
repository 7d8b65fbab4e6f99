"""The local gateway refuses what API Gateway would, and passes on what the template says."""

import json
from typing import Any

import pytest
from aiohttp import web

from local.gateway_api import Api
from tests.clock import ManualClock
from tests.edge import SUBMISSION, Edge, edge, extract, method_of

INVOCATIONS = "/runtimes/writer/invocations"
ARN = "arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A123456789012%3Aruntime%2Fwriter"


async def refused(edge: Edge, method: str, path: str, **options: Any) -> tuple[int, str, str]:
    """Return status, code and kind of a refusal that has all that a refusal has; the service saw nothing."""
    async with await edge.ask(method, path, **options) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.headers["X-Request-Id"] == edge.lines[-1]["request_id"]
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert edge.asked == []
    return response.status, problem["code"], edge.lines[-1]["end"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("DELETE", "/usage"),
        ("GET", "/usage/"),
        ("GET", "/ping"),
        ("GET", "/ready"),
        ("GET", "/runtimes//invocations"),
        ("GET", ""),
    ],
)
async def test_what_the_template_does_not_name_is_not_there(method: str, path: str) -> None:
    async with edge() as api:
        assert await refused(api, method, path) == (404, "not-found", "MISSING_AUTHENTICATION_TOKEN")


async def test_another_stage_is_nobodys() -> None:
    async with edge() as api, api.session.get(api.url.replace("/dev", "/prod") + "/usage") as response:
        said = (response.status, await response.json())

    assert (said, api.asked) == ((403, {"message": "Forbidden"}), [])


async def test_who_has_no_valid_id_token_of_our_client_does_not_get_past_the_authorizer() -> None:
    async with edge() as api:
        own = api.issuer
        forged = own.id_token().rpartition(".")[0] + "." + own.id_token("eve").rpartition(".")[2]
        values = {
            "none": "",
            "no token": "Bearer wrong",
            "forged": f"Bearer {forged}",
            "expired": f"Bearer {own.id_token(expires_in=-1)}",
            "access token": f"Bearer {own.access_token()}",
            "of another use": f"Bearer {own.id_token(claims={'token_use': 'access'})}",
            "of another client": f"Bearer {own.id_token(audience='headrace-local-too')}",
            "of another issuer": f"Bearer {own.id_token(claims={'iss': 'https://example.com'})}",
            "of nobody": f"Bearer {own.id_token(claims={'aud': None})}",
        }
        answers = {
            name: await refused(api, "GET", "/usage", headers={"Authorization": value})
            for name, value in values.items()
        }
        plain, _ = await api.status_and_document("GET", "/usage", headers={"Authorization": own.id_token()})

    assert answers == dict.fromkeys(values, (401, "unauthenticated", "UNAUTHORIZED"))
    assert plain == 200


async def test_a_token_of_a_new_key_gets_past_the_authorizer(clock: ManualClock) -> None:
    async with edge() as api:
        before, _ = await api.status_and_document("GET", "/usage")
        api.issuer.rotate()
        await clock.advance(1)
        after, _ = await api.status_and_document("GET", "/usage")

    assert (before, after) == (200, 200)


async def test_what_was_let_in_is_not_looked_at_again_for_the_time_that_the_template_says(
    clock: ManualClock,
) -> None:
    async with edge(now=lambda: clock.now_ms() / 1000) as api:
        token = {"Authorization": f"Bearer {api.issuer.id_token(expires_in=10)}"}
        statuses = []
        for seconds in (0, 59, 1):
            await clock.advance(seconds)
            statuses.append((await api.status_and_document("GET", "/usage", headers=token))[0])

    assert statuses == [200, 200, 401]


async def test_an_issuer_that_does_not_answer_is_a_fault_of_the_edge() -> None:
    async with edge(issuer="http://127.0.0.1:9/local_pool") as api:
        assert await refused(api, "GET", "/usage") == (500, "edge-failed", "AUTHORIZER_CONFIGURATION_ERROR")


async def test_a_method_without_an_authorizer_lets_everybody_through() -> None:
    async with edge() as api, api.session.options(f"{api.url}/usage") as response:
        status = response.status

    assert (status, [asked.method for asked in api.asked]) == (200, ["OPTIONS"])


@pytest.mark.parametrize("body", ["[1]", "{", "", '"{}"'], ids=["a list", "no JSON", "nothing", "a text"])
async def test_a_submission_that_is_no_json_object_is_refused(body: str) -> None:
    async with edge() as api:
        said = await refused(
            api, "POST", INVOCATIONS, data=body, headers={"Content-Type": "application/json"}
        )

    assert said == (400, "invalid-request", "BAD_REQUEST_BODY")


async def test_a_body_of_another_type_has_no_model() -> None:
    async with edge() as api:
        status, _ = await api.status_and_document(
            "POST", INVOCATIONS, data=b"a: 1", headers={"Content-Type": "text/plain"}
        )

    assert (status, api.asked[0].body) == (200, b"a: 1")


async def test_a_parameter_that_is_required_and_not_there_is_refused() -> None:
    changed = extract()
    method_of(changed, "GET", "/usage")["requires"].append("method.request.querystring.window")
    async with edge(api=changed) as api:
        without = await refused(api, "GET", "/usage?other=1")
        status, _ = await api.status_and_document("GET", "/usage?window=daily")

    assert (without, status) == ((400, "invalid-request", "BAD_REQUEST_PARAMETERS"), 200)


async def test_headers_over_the_limit_are_refused() -> None:
    changed = extract()
    async with edge(api=changed) as api:
        async with await api.ask("GET", "/usage", headers={"X-Padding": ""}) as response:
            sent = response.request_info.headers
        others = sum(len(name) + len(value) + 2 for name, value in sent.items())
        room = changed["limits"]["header_bytes"] - others
        token = {"Authorization": sent["Authorization"]}
        fits, _ = await api.status_and_document("GET", "/usage", headers={**token, "X-Padding": "x" * room})
        api.asked.clear()
        too_large = await refused(api, "GET", "/usage", headers={**token, "X-Padding": "x" * (room + 1)})

    assert (fits, too_large) == (200, (431, "edge-refused", "HEADERS_TOO_LARGE"))


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(chunked: bool) -> None:
    changed = extract()
    changed["limits"]["body_bytes"] = 1000
    async with edge(api=changed) as api:

        async def pieces() -> Any:
            for _ in range(101):
                yield b" " * 10

        body = pieces() if chunked else b" " * 1010
        said = await refused(api, "POST", INVOCATIONS, data=body)
        fits = {"data": json.dumps({"prompt": "x"}), "headers": {"Content-Type": "application/json"}}
        status, _ = await api.status_and_document("POST", INVOCATIONS, **fits)

    assert (said, status) == ((413, "body-too-large", "REQUEST_TOO_LARGE"), 200)


async def test_a_client_that_waits_for_the_word_to_send_its_body_gets_it() -> None:
    async with edge() as api:
        status, _ = await api.status_and_document("POST", INVOCATIONS, json={"prompt": "x"}, expect100=True)

    assert (status, json.loads(api.asked[0].body)) == (200, {"prompt": "x"})


async def test_requests_beyond_the_burst_are_refused_until_time_has_passed(clock: ManualClock) -> None:
    changed = extract()
    changed["throttle"] = {"requests_per_s": 2, "burst": 3}
    async with edge(api=changed) as api:
        at_once = [(await api.status_and_document("GET", "/usage"))[0] for _ in range(3)]
        api.asked.clear()
        said = await refused(api, "GET", "/usage")
        await clock.advance(0.5)
        later, _ = await api.status_and_document("GET", "/usage")

    assert (at_once, said, later) == ([200] * 3, (429, "throttled", "THROTTLED"), 200)


async def test_a_path_goes_on_in_the_bytes_in_which_it_came() -> None:
    async with edge() as api:
        headers = {"X-Request-Id": "the-callers-own", "Idempotency-Key": "k", "Connection": "keep-alive"}
        await api.status_and_document("POST", f"/runtimes/{ARN}/invocations?a=%20b", json={}, headers=headers)

    (asked,) = api.asked
    assert (asked.method, asked.target) == ("POST", f"/runtimes/{ARN}/invocations?a=%20b")
    assert asked.headers.getall("X-Request-Id") == [api.lines[0]["request_id"]]  # type: ignore[attr-defined]
    assert asked.headers["Idempotency-Key"] == "k"
    assert asked.headers["Authorization"].startswith("Bearer ")
    assert "User-Agent" in asked.headers
    assert (asked.body, api.lines[0]["path"]) == (b"{}", SUBMISSION[1])


async def test_headers_of_the_answer_that_api_gateway_renames_are_renamed() -> None:
    async def unauthenticated(_: web.BaseRequest) -> web.StreamResponse:
        headers = {"WWW-Authenticate": "Bearer", "Retry-After": "1", "Server": "us", "Set-Cookie": "a=1"}
        response = web.json_response({}, status=401, headers=headers)
        response.headers.add("Set-Cookie", "b=2")
        return response

    async with edge(unauthenticated) as api, await api.ask("GET", "/usage") as response:
        headers = response.headers

    assert (response.status, headers["Retry-After"]) == (401, "1")
    assert headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert "WWW-Authenticate" not in headers
    assert headers["x-amzn-Remapped-WWW-Authenticate"] == "Bearer"
    assert headers["x-amzn-Remapped-Server"] == "us"
    assert headers["x-amzn-RequestId"] == api.lines[0]["request_id"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, (500, "edge-failed", "API_CONFIGURATION_ERROR")),
        ({"target": "${Headrace.ApiLink637DD100}"}, (500, "edge-failed", "API_CONFIGURATION_ERROR")),
        ({"type": "HTTP"}, (500, "edge-failed", "API_CONFIGURATION_ERROR")),
        ({"sets": {"integration.request.header.X": "stageVariables.x"}}, (500, "edge-failed", None)),
        ({"connection": None}, (502, "edge-failed", "INTEGRATION_FAILURE")),
        ({"uri": "https://example.com/usage"}, (502, "edge-failed", "INTEGRATION_FAILURE")),
        ({"uri": "http://example.com:8080/usage"}, (502, "edge-failed", "INTEGRATION_FAILURE")),
    ],
)
async def test_an_integration_that_leads_nowhere_is_a_fault_of_the_edge(
    change: dict[str, Any], said: tuple[int, str, str | None]
) -> None:
    changed = extract()
    method_of(changed, "GET", "/usage")["integration"].update(change)
    async with edge(api=changed) as api:
        status, code, kind = await refused(api, "GET", "/usage")

    assert (status, code, kind if said[2] else None) == said


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"DEFAULT_4XX", "DEFAULT_5XX"}, (401, "edge-refused")),
        (set(), (401, None)),
    ],
)
async def test_a_refusal_that_the_template_does_not_shape_falls_back(
    left: set[str], said: tuple[int, str | None]
) -> None:
    changed = extract()
    changed["refusals"] = {kind: each for kind, each in changed["refusals"].items() if kind in left}
    async with edge(api=changed) as api:
        status, document = await api.status_and_document("GET", "/usage", headers={"Authorization": "x"})

    assert (status, document.get("code")) == said


@pytest.mark.parametrize(
    "change",
    [
        {"type": "REQUEST"},
        {"user_pools": []},
        {"user_pools": ["arn:aws:cognito-idp:us-east-1:123456789012:userpool/x"]},
        {"audience": "^${Headrace.ApiLink637DD100}$"},
    ],
)
def test_an_authorizer_of_a_kind_that_is_not_known_stops_the_start(change: dict[str, Any]) -> None:
    changed = extract()
    for authorizer in changed["authorizers"].values():
        authorizer.update(change)

    with pytest.raises(ValueError, match="ApiAuthorizer"):
        Api.read(changed, ["client"])


@pytest.mark.parametrize("change", [{"path": "/{proxy+}"}, {"method": "ANY"}])
def test_a_method_that_is_not_explicit_stops_the_start(change: dict[str, Any]) -> None:
    changed = extract()
    changed["methods"][0].update(change)

    with pytest.raises(ValueError, match="only explicit methods"):
        Api.read(changed, ["client"])


def test_a_name_in_a_path_goes_before_a_parameter() -> None:
    changed = extract()
    changed["methods"].append({**method_of(changed, "GET", "/usage"), "path": "/runtimes/mine/invocations"})
    api = Api.read(changed, ["client"])

    assert api.find("GET", "/runtimes/mine/invocations")[0].path == "/runtimes/mine/invocations"
    assert api.find("POST", "/runtimes/mine/invocations")[1] == {"runtimeId": "mine"}


@pytest.mark.promise("no-content-in-logs")
async def test_no_line_holds_a_token_a_query_or_a_body() -> None:
    async with edge() as api:
        token = api.issuer.id_token()
        headers = {"Authorization": f"Bearer {token}"}
        await api.status_and_document(
            "POST", f"{INVOCATIONS}?canary=1", json={"prompt": "canary"}, headers=headers
        )
        await api.status_and_document("GET", "/canary", headers=headers)

    text = json.dumps(api.lines)
    assert ("canary" in text, token in text) == (False, False)
    assert {**api.lines[0], "request_id": "", "duration_ms": 0} == {
        "request_id": "",
        "method": "POST",
        "path": SUBMISSION[1],
        "bytes": 14,
        "mode": "STREAM",
        "end": "whole",
        "status": 200,
        "duration_ms": 0,
    }
