"""Session settings: deep merges, refusals that change nothing, and the echo of what is in effect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeSessionCreateRequest

from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.session_config import SEMANTIC_VAD, SERVER_VAD, SessionConfig

BASE = SessionConfig(model="gpt-realtime", can_transcribe=True)


def turns(config: SessionConfig) -> Any:
    return config.echo("sess_1", 1)["audio"]["input"]["turn_detection"]


def test_turn_detection_is_on_by_default_and_a_part_of_it_keeps_the_rest() -> None:
    assert turns(BASE) == SERVER_VAD
    once = BASE.merged({"audio": {"input": {"turn_detection": {"threshold": 0.9, "create_response": False}}}})
    twice = once.merged(
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}}}}
    )
    assert turns(twice) == {
        **SERVER_VAD,
        "threshold": 0.9,
        "create_response": False,
        "silence_duration_ms": 200,
    }
    other = twice.merged(
        {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}}
    )
    assert turns(other) == {**SEMANTIC_VAD, "eagerness": "low"}
    assert turns(other.merged({"audio": {"input": {"turn_detection": None}}})) is None
    assert turns(other.merged({"turn_detection": {"type": "none"}})) is None
    again = other.merged({"turn_detection": None}).merged({"turn_detection": {"threshold": 0.4}})
    assert turns(again) == {**SERVER_VAD, "threshold": 0.4}


def test_null_clears_and_absence_keeps() -> None:
    config = BASE.merged(
        {
            "instructions": "Be brief.",
            "max_output_tokens": 100,
            "audio": {"input": {"transcription": {"model": "whisper-1", "language": "en"}}},
        }
    )
    assert config.merged({}) == config
    kept = config.merged({"audio": {"input": {"transcription": {"prompt": "names"}}}})
    assert kept.transcription == {"model": "whisper-1", "language": "en", "prompt": "names"}
    cleared = config.merged(
        {"instructions": None, "max_output_tokens": None, "audio": {"input": {"transcription": None}}}
    )
    assert cleared == BASE


@pytest.mark.parametrize("shape", ["ga", "flat"])
def test_flat_fields_are_understood_on_every_connection(shape: str) -> None:
    flat = {
        "modalities": ["text", "audio"],
        "voice": "alloy",
        "input_audio_format": "g711_ulaw",
        "output_audio_format": "g711_alaw",
        "input_audio_transcription": {"model": "whisper-1"},
        "turn_detection": {"type": "server_vad", "threshold": 0.7},
        "max_response_output_tokens": 77,
        "temperature": 0.6,
    }
    ga = {
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": {"type": "audio/pcmu"},
                "transcription": {"model": "whisper-1"},
                "turn_detection": {"threshold": 0.7},
            },
            "output": {"voice": {"id": "voice_1"}, "format": {"type": "audio/pcma"}, "speed": 1.5},
        },
        "max_output_tokens": 77,
        "temperature": 0.6,
    }
    made = BASE.merged(ga if shape == "ga" else flat)
    assert (made.input_format, made.output_format) == ("audio/pcmu", "audio/pcma")
    assert made.turn_detection == {**SERVER_VAD, "threshold": 0.7}
    assert (made.max_output_tokens, made.temperature, made.output_modality) == (77, 0.6, "audio")
    echo = made.echo("sess_1", 1)
    assert echo["audio"]["output"] == {"format": {"type": "audio/pcma"}, "voice": "default", "speed": 1.0}


def test_fields_that_the_server_cannot_honour_are_accepted() -> None:
    config = BASE.merged(
        {
            "model": "gpt-realtime-2.1",
            "voice": "nobody",
            "prompt": {"id": "p"},
            "tracing": "auto",
            "include": ["item.input_audio_transcription.logprobs"],
            "truncation": {"type": "odd"},
            "audio": {"input": {"noise_reduction": {"type": "near_field"}}, "output": {"speed": 9}},
            "never_heard_of": [1],
        }
    )
    echo = config.echo("sess_1", 1)
    assert echo["model"] == "gpt-realtime-2.1"
    assert (echo["tracing"], echo["prompt"], echo["truncation"]) == (None, None, "auto")
    assert echo["audio"]["input"]["noise_reduction"] is None


REFUSED = [
    ({"max_output_tokens": 0}, "session.max_output_tokens"),
    ({"max_output_tokens": "many"}, "session.max_output_tokens"),
    ({"output_modalities": ["smell"]}, "session.output_modalities[0]"),
    ({"instructions": 5}, "session.instructions"),
    ({"instructions": "x" * 256_001}, "session.instructions"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "session.tools[0].type"),
    ({"tools": [{"type": "function"}]}, "session.tools[0].name"),
    ({"tools": [{"type": "function", "name": "f"}] * 129}, "session.tools"),
    ({"tool_choice": "maybe"}, "session.tool_choice"),
    ({"type": "transcription"}, "session.type"),
    (
        {"audio": {"input": {"turn_detection": {"threshold": 2}}}},
        "session.audio.input.turn_detection.threshold",
    ),
    ({"audio": {"input": {"turn_detection": {"type": "odd"}}}}, "session.audio.input.turn_detection.type"),
    (
        {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
        "session.audio.input.format.rate",
    ),
    ({"input_audio_format": "mp3"}, "session.audio.input.format.type"),
    ({"audio": []}, "session.audio"),
]


@pytest.mark.parametrize(("update", "param"), REFUSED)
def test_a_refusal_names_the_field(update: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        BASE.merged(update)
    assert caught.value.code == "invalid_value"
    assert caught.value.param == param


WORDS = ["", "server_vad", "semantic_vad", "none", "low", "auto", "inf", "audio/pcmu", "pcm16", "odd"]
LISTS = [["text"], ["audio", "text"], [{"name": "f"}], ["reflection"], {}]
LEAVES = st.sampled_from([None, True, 0, 1, 0.5, 3000, *WORDS, *LISTS])
OUTER = ["type", "model", "instructions", "modalities", "output_modalities", "audio", "tools", "tool_choice"]
SOUND = ["input", "output", "format", "turn_detection", "threshold", "eagerness", "voice", "transcription"]
OTHERS = ["max_output_tokens", "temperature", "truncation", "reasoning", "innervoice", "events", "rate"]
NAMES = st.sampled_from([*OUTER, *SOUND, *OTHERS, "noise_reduction", "input_audio_format"])
UPDATES = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=5)


@settings(deadline=None)
@given(st.lists(st.dictionaries(NAMES, UPDATES, max_size=3), max_size=3))
def test_any_update_is_refused_by_name_or_leaves_a_session_that_validates(
    updates: list[dict[str, Any]],
) -> None:
    config = BASE
    for update in updates:
        refused = None
        try:
            config = config.merged(update)
        except ApiError as error:
            refused = error
        assert refused is None or str(refused.param).startswith("session")
    RealtimeSessionCreateRequest.model_validate(config.echo("sess_1", 1), strict=True)
