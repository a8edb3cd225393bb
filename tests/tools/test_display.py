"""The reply as it is drawn: plain lines on a pipe, a growing line on a terminal, nothing that could harm a terminal."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from innervoice.tools.cli.display import Display, line_text, plan_rows, printable, summary
from innervoice.types import EVENTS, TokenEvent, Usage

USAGE = Usage(reflection_tokens=22, transcript_tokens=13, speech_tokens=26, total_new_tokens=61, audio_s=2.08)
TIMED = Usage(audio_s=2.08, audio_ttfp_ms=412.0, first_chunk_s=0.84, audio_rtf=0.5)


def segment(kind: str, text: str = "", ids: tuple[int, ...] = (1,), t: float = 0.5) -> dict[str, Any]:
    return {"kind": kind, "segment": 0, "ids": list(ids), "text": text, "t": t, "t_end": t, "forced": False}


def done(usage: Usage = USAGE) -> dict[str, Any]:
    return {"kind": "done", "reason": "stop", "usage": asdict(usage), "error": None, "t": 1.0}


def draw(
    lines: list[dict[str, Any]], *, terminal: bool, growing: dict[str, Any] | None = None, width: int = 60
) -> str:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=width, color_system="standard" if terminal else None
    )
    with Display(console) as display:
        display.show([], growing)
        display.show(lines, None)
    return file.getvalue()


def test_a_pipe_gets_one_plain_line_a_segment() -> None:
    audio = {"kind": "audio", "t": 0.9, "start": 22050, "samples": 11025, "rate": 22050}
    long = "word " * 60
    drawn = draw(
        [segment("reflection", long), segment("speech", ids=(1, 2, 3)), audio, segment("end")], terminal=False
    )
    lines = drawn.splitlines()
    assert len(lines) == 4
    assert lines[0].split(maxsplit=3) == ["0.50", "s", "reflection", long.strip()]
    assert lines[1].endswith("▮▮▮ 3")
    assert lines[2].endswith("0.50 s of sound, from 1.00 s on")
    assert lines[3].endswith("end of turn")
    assert "\x1b" not in drawn


@pytest.mark.parametrize("kind", [name for name, made in EVENTS.items() if issubclass(made, TokenEvent)])
def test_each_kind_of_segment_is_drawn(kind: str) -> None:
    for terminal in (False, True):
        assert kind in draw([segment(kind, "a call")], terminal=terminal)


def test_tokens_of_calls_are_counted_where_there_are_some() -> None:
    assert ", 26 speech)" in summary(done())[0]
    assert ", 26 speech, 5 tool)" in summary(done(replace(USAGE, tool_tokens=5)))[0]


def test_markup_in_a_reply_is_text() -> None:
    for terminal in (False, True):
        assert "[bold]a[/bold] [/x]" in draw(
            [segment("transcript", "[bold]a[/bold] [/x]")], terminal=terminal
        )


def test_a_terminal_sees_the_growing_line_and_then_the_whole() -> None:
    drawn = draw(
        [segment("transcript", "hello world")], terminal=True, growing=segment("transcript", "hello")
    )
    assert drawn.count("hello world") == 1
    assert "\x1b[" in drawn


def test_a_long_segment_wraps_beside_its_label() -> None:
    drawn = draw([segment("reflection", "abcd " * 40)], terminal=True, width=50)
    drawn_lines = [line for line in drawn.splitlines() if "abcd" in line]
    assert len(drawn_lines) > 1 and drawn.count("abcd") == 40 and drawn.count("reflection") == 1


@pytest.mark.parametrize("text", ["x" * 500, "界" * 300, "a界" * 200, "short", ""])
def test_the_tail_fits_and_is_the_newest(text: str) -> None:
    tail = line_text(segment("reflection", text), 20)
    assert cell_len(tail) <= 20
    assert text.endswith(tail.removeprefix("…"))


def test_nothing_in_a_reply_reaches_the_terminal_as_a_command() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\u202ec\r\nd\te") == "a·[2Jb···c  d e"
    assert printable("ü 你好 🙂 \ufffd") == "ü 你好 🙂 \ufffd"


def test_a_long_speech_has_a_short_bar_and_its_count() -> None:
    assert line_text(segment("speech", ids=tuple(range(400)))) == "▮" * 26 + " 400"


def test_the_summary_tells_first_audio_with_the_length_of_its_chunk() -> None:
    assert summary(done()) == ["stop: 61 tokens (22 reflection, 13 transcript, 26 speech), 2.08 s of sound"]
    assert summary(done(TIMED))[1:] == [
        "first audio after 0.41 s, a chunk of 0.84 s",
        "real-time factor 0.50 (below 1 is faster than it plays)",
    ]
    assert "first audio after 0.41 s" in draw([done(TIMED)], terminal=False)


def test_a_plan_in_readable_units() -> None:
    sizes = {
        "weight_bytes": 3 * 2**30,
        "speech_tokenizer_bytes": 512,
        "codec_bytes": 2**20,
        "memory_bytes": 2**40,
    }
    cache = {
        "kv_bytes_per_token": 1536,
        "kv_bytes_per_session": 2**21,
        "voice_bytes_per_session": 3 * 2**20,
        "step_bytes_per_session": 700 * 2**10,
        "max_model_len": 8192,
    }
    kinds = {"quantization": None, "kv_dtype": "fp8_e4m3", "speech_tokenizer_dtype": "float32"}
    rows = plan_rows(
        {**sizes, **cache, "sessions": 7, "device": "cpu", "dtype": "bfloat16", "codec_dtype": "bfloat16"}
        | kinds
    )
    assert rows["weights"] == "3.0 GiB (bfloat16)" and rows["speech tokenizer"] == "512 B (float32)"
    assert rows["speech decoder"] == "1.0 MiB (bfloat16)" and rows["cache per token"] == "1.5 KiB (fp8_e4m3)"
    assert rows["voice per session"] == "3.0 MiB" and rows["step per session"] == "700.0 KiB"
    assert rows["cache per session"] == "2.0 MiB (of 8192 tokens)" and rows["sessions that fit"] == "7"
    assert rows["device"] == "cpu, 1024.0 GiB of memory"
