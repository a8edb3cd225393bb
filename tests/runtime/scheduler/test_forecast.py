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


@pytest.mark.parametrize(("prefill", "voice"), [(0.0, {}), (20e-6, {}), (0.0, {1: 0.05}), (20e-6, {1: 0.05})])
def test_nothing_is_expected_before_a_step_was_measured(prefill: float, voice: dict[int, float]) -> None:
    columns, learned = ReplyColumns(), LearnedCosts({}, voice, prefill)
    add(columns, phase=Phase.PREFILL, prompt_left=900)
    made = forecast(columns, learned)
    assert (made.first_audio_s, made.num_running) == (0.0, 1)
    learned.observe_step(1, 0, 0.01)
    assert forecast(columns, learned).first_audio_s > FIRST_TOKENS * 0.01


def test_a_prompt_that_is_fed_first_is_no_forecast() -> None:
    columns, learned = ReplyColumns(), LearnedCosts()
    learned.observe_step(0, 512, 0.2)
    assert learned.prefill_token_s > 0
    assert forecast(columns, learned).first_audio_s == 0.0
