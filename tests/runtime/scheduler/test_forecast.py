from __future__ import annotations

import pytest
from scheduler_tables import add, costs

from innervoice.runtime.scheduler import LearnedCosts, Phase, ReplyColumns, forecast
from innervoice.runtime.scheduler.forecast import FIRST_TOKENS, QUESTION_TOKENS


def test_an_idle_engine_needs_its_floor() -> None:
    made = forecast(ReplyColumns(), costs(step_s=0.004, row_s=0.0))
    assert made.first_audio_s == pytest.approx(
        QUESTION_TOKENS * 20e-6 + FIRST_TOKENS * 0.004 + 0.001, rel=1e-6
    )
    assert (made.num_running, made.num_waiting) == (0, 0)


def test_prompts_ahead_and_replies_beside_are_waited_for() -> None:
    columns, learned = ReplyColumns(), costs()
    seconds = [forecast(columns, learned).first_audio_s]
    for changes in (
        {},
        {"phase": Phase.WAITING, "context": 4000},
        {"phase": Phase.PREFILL, "prompt_left": 900},
    ):
        add(columns, **changes)
        seconds.append(forecast(columns, learned).first_audio_s)
    assert seconds == sorted(seconds)
    assert seconds[2] - seconds[1] > 4000 * 20e-6
    assert seconds[3] - seconds[2] > 900 * 20e-6
    add(columns, phase=Phase.VOICING)
    made = forecast(columns, learned)
    assert made.first_audio_s == seconds[3], "its tokens are complete"
    assert (made.num_running, made.num_waiting) == (3, 1)


def test_a_user_who_still_speaks_is_not_waited_for() -> None:
    columns = ReplyColumns()
    before = forecast(columns, costs())
    add(columns, phase=Phase.PREFILL, prompt_left=500, is_listening=True)
    assert forecast(columns, costs()) == before


def test_nothing_was_measured() -> None:
    assert forecast(ReplyColumns(), LearnedCosts()).first_audio_s == 0.0
