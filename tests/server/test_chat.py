"""Chat completions with sound through the openai client, over loopback, with the packaged tiny checkpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from openai import OpenAI
from small_servers import KEY, RunningServer, running_server, wait_until

from innervoice import Engine, Message, OutOfCapacity, Sampling, Text
from innervoice.server.admission import draining
from innervoice.server.chat.kept import KeptAnswer, KeptAnswers
from innervoice.server.draining import end_all

QUESTION = [{"role": "user", "content": "How are you?"}]
SOUND = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
SHORT = {"model": "gpt-4o-audio-preview", "max_completion_tokens": 60, "temperature": 0, "seed": 3}


@pytest.fixture(scope="module")
def server(small_engine: Engine) -> Iterator[RunningServer]:
    with running_server(small_engine, schedule="stitch_s") as made:
        yield made


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(client: OpenAI, messages: Any = None, **changes: Any) -> Any:
    return client.chat.completions.create(messages=messages or QUESTION, **SHORT | SOUND | changes)


def wav(data: str) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")


def test_an_answer_is_that_of_the_engine(small_engine: Engine, client: OpenAI) -> None:
    expected = small_engine.generate(
        [Message("user", Text("How are you?"))],
        schedule="stitch_s",
        sampling=Sampling(temperature=0, seed=3, max_new_tokens=60),
        output_rate=24000,
        output_format="int16",
    )
    answer = ask(client)
    (choice,) = answer.choices
    assert answer.model == "gpt-4o-audio-preview"
    assert choice.message.audio.transcript == expected.transcript
    assert choice.message.content is None
    assert choice.message.reasoning_content == "\n\n".join(expected.reflections)
    assert choice.finish_reason == {"stop": "stop", "length": "length"}[expected.finish_reason]
    samples, rate = wav(choice.message.audio.data)
    assert rate == 24000
    assert np.array_equal(samples, expected.audio.samples)
    usage = answer.usage
    assert usage.completion_tokens == len(expected.ids)
    assert usage.completion_tokens_details.audio_tokens == expected.usage.speech_tokens
    assert usage.completion_tokens_details.reasoning_tokens == expected.usage.reflection_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 3500 < choice.message.audio.expires_at - time.time() <= 3600


def test_a_streamed_answer_has_the_same_content(client: OpenAI) -> None:
    whole = ask(client).choices[0].message
    chunks = list(
        ask(
            client,
            stream=True,
            audio={"voice": "alloy", "format": "pcm16"},
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    sounds = [delta["audio"] for delta in deltas if delta.get("audio")]
    assert sounds[0]["id"].startswith("audio_")
    assert "expires_at" in sounds[-1]
    pcm = b"".join(base64.b64decode(one["data"]) for one in sounds if one.get("data"))
    assert pcm == wav(whole.audio.data)[0].tobytes()
    assert "".join(one.get("transcript") or "" for one in sounds) == whole.audio.transcript
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert reasoning == whole.reasoning_content.replace("\n\n", "")
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("kind", ["mp3", "flac", "opus", "pcm16"])
def test_formats(client: OpenAI, kind: str) -> None:
    plain = wav(ask(client).choices[0].message.audio.data)[0]
    data = base64.b64decode(ask(client, audio={"voice": "v", "format": kind}).choices[0].message.audio.data)
    if kind == "pcm16":
        assert data == plain.astype("<i2").tobytes()
        return
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 24000
    assert abs(len(samples) - len(plain)) < 0.1 * rate
    if kind == "flac":
        assert np.array_equal(samples, plain)


def test_text_alone(client: OpenAI) -> None:
    answer = ask(client, modalities=["text"], audio=openai.NOT_GIVEN)
    message = answer.choices[0].message
    assert message.audio is None
    assert message.content
    assert answer.usage.completion_tokens_details.audio_tokens == 0
    chunks = ask(client, modalities=openai.NOT_GIVEN, audio=openai.NOT_GIVEN, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content


def test_a_recording_is_heard(small_engine: Engine, client: OpenAI, assets_dir: Path) -> None:
    path = assets_dir / "question.wav"
    part = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(path.read_bytes()).decode(), "format": "wav"},
    }
    answer = ask(client, [{"role": "user", "content": [part]}])
    sampling = Sampling(temperature=0, seed=3, max_new_tokens=60)
    expected = small_engine.generate([Message("user", path)], schedule="stitch_s", sampling=sampling)
    assert answer.choices[0].message.audio.transcript == expected.transcript
    assert answer.usage.prompt_tokens_details.audio_tokens == answer.usage.prompt_tokens
    both = ask(client, [{"role": "user", "content": [part, {"type": "text", "text": "In short."}]}])
    assert both.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_dialogue_goes_on_from_an_earlier_answer(client: OpenAI, server: RunningServer) -> None:
    first = ask(client).choices[0].message.audio
    named = [*QUESTION, {"role": "assistant", "audio": {"id": first.id}}, {"role": "user", "content": "Why?"}]
    written = [*QUESTION, {"role": "assistant", "content": first.transcript}, named[-1]]
    going_on, anew = ask(client, named), ask(client, written)
    # The session that goes on has every token of the answer, hidden and spoken ones too.
    assert going_on.usage.prompt_tokens > anew.usage.prompt_tokens + 20
    again = ask(client, named)
    assert again.choices[0].message.audio.transcript == going_on.choices[0].message.audio.transcript
    edited = [{"role": "user", "content": "Who are you?"}, *named[1:]]
    assert ask(client, edited).usage.prompt_tokens < going_on.usage.prompt_tokens
    third = going_on.choices[0].message.audio
    longer = [*named, {"role": "assistant", "audio": {"id": third.id}}, {"role": "user", "content": "And?"}]
    assert ask(client, longer).usage.prompt_tokens > going_on.usage.prompt_tokens
    wait_until(lambda: server.context.admission.num_held == 0)


def test_system_messages_are_heeded(client: OpenAI) -> None:
    plain = ask(client).usage.prompt_tokens
    system = {"role": "developer", "content": "You are a parrot that repeats each word three times, always."}
    assert ask(client, [system, *QUESTION]).usage.prompt_tokens != plain
    assert ask(client, [*QUESTION, system, *QUESTION]).usage.prompt_tokens > plain


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "%"}}]}
                ]
            },
            "messages[0].content[0].input_audio.data",
        ),
        (
            {"messages": [*QUESTION, {"role": "assistant", "audio": {"id": "audio_none"}}]},
            "messages[1].audio.id",
        ),
        ({"audio": {"format": "aac"}}, "audio.format"),
        ({"audio": None}, "audio"),
        ({"stream": True}, "audio.format"),
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 3}, "top_p"),
        ({"stop": ["x"]}, "stop"),
        ({"innervoice": {"schedule": "none such"}}, "innervoice.schedule"),
        ({"innervoice": {"schedule": "none such"}, "modalities": ["text"]}, "innervoice.schedule"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": None, "max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"reasoning_effort": "silly"}, "reasoning_effort"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_a_refusal_names_the_field(server: RunningServer, changes: dict[str, Any], param: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": QUESTION, **SHORT, **SOUND, **changes})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert error["message"]
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": "x"}'])
def test_a_body_that_is_none(server: RunningServer, body: bytes) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in ("invalid_json", "invalid_value")


def test_sound_that_is_none_is_a_bad_request(server: RunningServer) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"noise" * 50).decode()}}
    for changes in ({}, {"stream": True, "audio": {"format": "pcm16"}}):
        body = {"messages": [{"role": "user", "content": [part]}], **SHORT, **SOUND, **changes}
        with server.client() as client:
            answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "no audio that can be read" in answer.json()["error"]["message"]


def test_a_key_and_a_size(server: RunningServer) -> None:
    with server.client(key="wrong") as client:
        assert client.post("/v1/chat/completions", json={"messages": QUESTION}).status_code == 401
    with server.client() as client:
        assert client.post("/v1/chat/completions", content=b" " * (24 * 2**20 + 1)).status_code == 413


def test_no_room_is_429_with_a_time(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [server.context.admission.hold() for _ in range(2)]
    with server.client() as client:
        body = {"messages": QUESTION, **SHORT}
        full = client.post("/v1/chat/completions", json=body)
        for slot in slots:
            slot.release()

        async def refuse(**_: Any) -> Any:
            raise OutOfCapacity("4 replies wait", 2.5)

        monkeypatch.setattr(server.context.engine, "aopen_session", refuse)
        busy = client.post("/v1/chat/completions", json=body)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "session_limit_reached")
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "3")
    assert busy.json()["error"]["retry_after"] == 2.5


def test_a_client_that_leaves_cancels_its_reply(server: RunningServer) -> None:
    body = {"messages": QUESTION, **SHORT, **SOUND, "max_completion_tokens": 2000}
    for changes in ({"stream": True, "audio": {"format": "pcm16"}}, {}):
        with server.client() as client:
            if changes:
                with client.stream("POST", "/v1/chat/completions", json=body | changes) as answer:
                    assert next(answer.iter_lines()).startswith("data: ")
            else:
                with pytest.raises(Exception, match="timed out"):
                    client.post("/v1/chat/completions", json=body, timeout=0.7)
        wait_until(lambda: server.context.admission.num_held == 0)
        assert not server.context.live


def test_an_answer_that_is_cut_short_by_the_drain_says_so(server: RunningServer) -> None:
    body = {"messages": QUESTION, **SHORT, **SOUND, "max_completion_tokens": 2000, "stream": True}
    with server.client() as client:
        request = body | {"audio": {"format": "pcm16"}}
        with client.stream("POST", "/v1/chat/completions", json=request) as answer:
            lines = answer.iter_lines()
            next(lines)
            ending = asyncio.run_coroutine_threadsafe(end_all(server.context, 1001, draining()), server.loop)
            last = [line for line in lines if line.startswith("data: {")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_draining"
    ending.result(10)
    assert not server.context.live


def reply(name: str, num_bytes: int, expires_at: int) -> KeptAnswer:
    return KeptAnswer(name, "words", b"", b"x" * num_bytes, expires_at)


def test_answers_are_kept_for_an_hour_as_far_as_they_fit() -> None:
    now = [0.0]
    kept = KeptAnswers(max_bytes=100, clock=lambda: now[0])
    assert kept.new_id()[1] == 3600
    kept.keep(reply("a", 60, 3600))
    kept.keep(reply("b", 30, 3601))
    assert kept.find("a") is not None
    kept.keep(reply("c", 20, 3602))
    assert kept.find("a") is None
    now[0] = 3601.0
    assert kept.find("b") is None
    assert kept.find("c") is not None
    kept.keep(reply("d", 1000, 9999))
    assert kept.find("d") is None
