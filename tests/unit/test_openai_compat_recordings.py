"""Recorded streams of OpenAI-compatible servers: whole, byte by byte, cut anywhere, broken off anywhere."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from service.errors import UpstreamFailed
from tests.translation import START, Said, Translated, arguments, end, reasoning, stop, text, tool, usage

RECORDINGS = Path(__file__).parents[1] / "recordings"
BON = [START, text("Bon"), text("jour"), text(" en"), text(" f"), text("ranç")]
LOOK = "chatcmpl-tool-6a5d0c2f1b3e4d7f9a8b7c6d5e4f3a2b"
RECORDED: dict[str, Sequence[Said]] = {
    "llama-cpp-text": [
        *BON,
        *map(text, ("ais", ",", " c", "'", "ét", "ait", " le")),
        *(end(), stop("max_tokens"), usage(26, 12)),
    ],
    "llama-cpp-cached": [*BON, end(), stop("max_tokens"), usage(1, 5, cached=25)],
    "llama-cpp-no-usage": [START, *map(text, ("hi", " there", ",")), end(), stop("max_tokens")],
    "openai-text": [
        *(START, text("Das"), text(" Flussbett"), text(" 🌊")),
        *(end(), stop("end_turn"), usage(176, 9, cached=1024)),
    ],
    "openai-tools": [
        *(START, tool("call_4XzlGBLtUe9dy3GVNV4jhq7h", "get_weather", 0)),
        *(arguments('{"ci', 0), arguments('ty":"Graz"}', 0), end(0)),
        *(tool("call_JMW1whyEaYG438VE1OIflxA2", "get_time", 1), arguments("{}", 1), end(1)),
        *(stop("tool_use"), usage(87, 34)),
    ],
    "openai-refusal": [
        *(START, text("I'm sorry,"), text(" I can't help with that.")),
        *(end(), stop("end_turn"), usage(19, 11)),
    ],
    "vllm-reasoning": [
        *(START, reasoning("Nine"), reasoning(" point."), end(0)),
        *(text("9.8", 1), text(" is", 1), text(" greater.", 1), end(1)),
        *(stop("end_turn"), usage(21, 57)),
    ],
    "vllm-tools": [
        *(START, text("Let me look."), end(0), tool(LOOK, "get_weather", 1)),
        *(arguments('{"city": ', 1), arguments('"Graz"}', 1), end(1)),
        *(stop("tool_use"), usage(163, 22)),
    ],
}


def recording(name: str) -> bytes:
    return (RECORDINGS / f"{name}.sse").read_bytes()


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_becomes_the_frames_that_bedrock_would_send(name: str) -> None:
    assert Translated([recording(name)]).outcome == (RECORDED[name], True, None)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_byte_by_byte_becomes_the_same_frames(name: str) -> None:
    stream = recording(name)

    pieces = [stream[at : at + 1] for at in range(len(stream))]

    assert Translated(pieces).outcome == (RECORDED[name], True, None)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_in_two_pieces_becomes_the_same_frames_for_every_cut(name: str) -> None:
    stream = recording(name)

    outcomes = {repr(Translated([stream[:at], stream[at:]]).outcome) for at in range(len(stream))}

    assert outcomes == {repr((RECORDED[name], True, None))}


@pytest.mark.promise("truncation-is-failure")
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_that_breaks_off_anywhere_is_not_whole(name: str) -> None:
    stream = recording(name)
    ends_at = stream.index(b"[DONE]") + len(b"[DONE]\n\n")

    broken = [Translated([stream[:at]]) for at in range(ends_at)]

    assert not any(each.is_whole for each in broken)
    assert all(each.frames == RECORDED[name][: len(each.frames)] for each in broken)


def test_every_recording_is_tested() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.sse")} == RECORDED.keys() | {"vllm-error"}


@pytest.mark.promise("truncation-is-failure")
def test_a_recorded_error_is_a_failure_after_the_frames_before_it() -> None:
    got = Translated([recording("vllm-error")])

    assert got.outcome == ([START, text("Half")], False, UpstreamFailed)
    assert "EngineCore" not in str(got.error)
