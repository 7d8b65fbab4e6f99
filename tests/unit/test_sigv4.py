"""Our signatures are botocore's, whatever is signed."""

import time
from functools import partial
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from service.models.sigv4 import Signer

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
keys = st.builds(ReadOnlyCredentials, visible, visible, st.none() | visible, st.none())
segments = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#/[]"), max_size=20
)
paths = st.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(
    [
        "/",
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.m-v1%3A0/converse-stream",
        "/model/gr%C3%BC%C3%9Fe/converse-stream",
        "/model/../converse-stream",
        "/behind/a%20proxy//model/x~y",
    ]
)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
headers = st.fixed_dictionaries(
    {"host": st.sampled_from(["127.0.0.1:8080", "bedrock-runtime.us-east-1.amazonaws.com"])},
    optional={"content-type": values, "x-amz-target": values, "accept": values},
)
moments = st.integers(min_value=0, max_value=4_102_444_800)
places = st.sampled_from([("bedrock", "us-east-1"), ("dynamodb", "eu-central-1")])


def signed_by_botocore(
    path: str, given: dict[str, str], body: bytes, who: Any, place: tuple[str, str], moment: int
) -> str:
    signer = SigV4Auth(who, *place)
    request = AWSRequest("POST", f"https://{given['host']}{path}", dict(given), body)
    request.context["timestamp"] = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))
    signer._modify_request_before_signing(request)
    canonical = signer.canonical_request(request)
    signer._inject_signature_to_request(
        request, signer.signature(signer.string_to_sign(request, canonical), request)
    )
    return str(request.headers["Authorization"])


@pytest.mark.promise("signed-as-botocore-signs")
@given(paths, headers, st.binary(max_size=200), keys, places, moments)
def test_a_signature_is_the_one_that_botocore_makes_of_the_same_bytes(
    path: str, given: dict[str, str], body: bytes, who: Any, place: tuple[str, str], moment: int
) -> None:
    added = Signer(*place, now_s=lambda: moment).sign(path, given, body, who)

    assert added["authorization"] == signed_by_botocore(path, given, body, who, place, moment)
    assert added.get("x-amz-security-token") == who.token


@given(st.lists(st.tuples(keys, moments), min_size=2, max_size=6))
def test_a_signer_that_has_signed_before_signs_as_a_new_one(signed: list[tuple[Any, int]]) -> None:
    now = 0
    old = Signer("bedrock", "us-east-1", now_s=lambda: now)
    of_the_old, of_new_ones = [], []
    for who, moment in [*signed, *signed]:
        now = moment
        of_the_old.append(old.sign("/model/m/converse-stream", {"host": "h"}, b"{}", who))
        new = Signer("bedrock", "us-east-1", now_s=partial(float, moment))
        of_new_ones.append(new.sign("/model/m/converse-stream", {"host": "h"}, b"{}", who))

    assert of_the_old == of_new_ones
