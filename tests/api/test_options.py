"""EngineOptions: one place for an option's name, type, default, sentence and limits."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from innervoice import Engine, EngineOptions, EventField, SteadySettings
from innervoice.api.options import FIELDS
from innervoice.checkpoint.quantization import Quantization
from innervoice.runtime.scheduler import Policy


def test_every_option_has_a_sentence_and_stands_in_the_help() -> None:
    assert EngineOptions.__doc__ is not None
    for name, field in FIELDS.items():
        doc = field.metadata["doc"]
        assert doc.endswith(".") and len(doc) > 10, name
        assert f"    {name}: " in EngineOptions.__doc__ and doc in EngineOptions.__doc__


def test_every_default_is_allowed_and_nothing_else_of_its_kind_is() -> None:
    assert EngineOptions() == EngineOptions().changed()
    for name, field in FIELDS.items():
        if field.metadata["choices"]:
            assert field.default is None or field.default in field.metadata["choices"]
            with pytest.raises(ValueError, match=f"^{name} is 'magic': use .* or "):
                EngineOptions(**{name: "magic"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_fraction", 0.0),
        ("memory_fraction", 1.5),
        ("max_sessions", 0),
        ("threads", 0),
        ("max_waiting", -1),
        ("max_load", 0.0),
        ("max_load", math.nan),
        ("reader_timeout_s", 0.0),
    ],
)
def test_a_value_outside_its_limits_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}: it must be"):
        EngineOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("policy", 3, "use slack, fixed, fcfs or a Policy"),
        ("policy", None, "use slack, fixed, fcfs or a Policy"),
        ("policy", Policy, "use slack, fixed, fcfs or a Policy"),
        ("preempt", 3, "use recompute or swap"),
        ("preempt", None, "use recompute or swap"),
        ("quantization", 3, "use int8, int4, fp8, a Quantization or None"),
        ("max_sessions", "3", "use an integer or None"),
        ("max_sessions", True, "use an integer or None"),
        ("max_sessions", 1.5, "use an integer or None"),
        ("max_model_len", 1.5, "use an integer or None"),
        ("max_waiting", "1", "use an integer or None"),
        ("threads", "2", "use an integer or None"),
        ("threads", True, "use an integer or None"),
        ("max_load", "a", "use a number"),
        ("max_load", None, "use a number"),
        ("memory_fraction", None, "use a number"),
        ("reader_timeout_s", "1", "use a number or None"),
        ("device", None, "use a string"),
        ("speech_tokenizer", 3, "use a string, a PathLike or None"),
        ("vocoder_noise", "off", "use True or False"),
        ("share_prefixes", "no", "use True or False"),
        ("warmup", "no", "use True, False or None"),
        ("event_fields", "x", "use a tuple of EventField"),
        ("event_fields", None, "use a tuple of EventField"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} is {value!r}: {expected}')}$"):
        EngineOptions(**{name: value})


def test_values_of_the_annotated_types_are_taken(tmp_path: Path) -> None:
    made = EngineOptions(max_load=1, max_sessions=2, speech_tokenizer=tmp_path, policy=Policy(), threads=None)
    assert made.max_load == 1 and made.max_sessions == 2 and made.speech_tokenizer == tmp_path


def test_event_fields_may_be_any_iterable_of_them() -> None:
    one = EventField("rank", "done", max)
    assert EngineOptions(event_fields=(each for each in [one])).event_fields == (one,)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^event_fields\[1\] is 3: use an EventField$"):
        EngineOptions(event_fields=(one, 3))  # type: ignore[arg-type]


def test_options_that_are_no_engine_options_are_refused(tiny_dir: Path) -> None:
    for given in ({}, {"device": "cpu"}):
        with pytest.raises(
            ValueError, match=r"^options is \{.*\}: use an EngineOptions, or give each option"
        ):
            Engine.from_pretrained(tiny_dir, given)  # type: ignore[call-overload]


def test_values_that_are_no_strings_pass_the_choices() -> None:
    made = EngineOptions(streaming=SteadySettings(steps=5), quantization=Quantization("int8"))
    assert made.changed(device="cpu").streaming == SteadySettings(steps=5)


def test_an_unknown_option_is_refused_with_those_that_exist(tiny_dir: Path) -> None:
    calls: list[Any] = [
        lambda: EngineOptions().changed(divice="cpu"),
        lambda: Engine.from_pretrained(tiny_dir, divice="cpu"),  # type: ignore[call-overload]
    ]
    for call in calls:
        with pytest.raises(
            TypeError, match=r"unknown engine option 'divice'; options are speech_tokenizer, .*warmup"
        ) as raised:
            call()
        assert all(name in str(raised.value) for name in FIELDS)


def test_options_and_keywords_make_the_same_engine(tiny_dir: Path) -> None:
    options = EngineOptions(device="cpu", max_model_len=256, max_sessions=2)
    with (
        Engine.from_pretrained(tiny_dir, options, max_sessions=3) as one,
        Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=256, max_sessions=3) as other,
    ):
        assert one.plan().sessions == 3
        changing = {"memory_bytes"}
        plans = [{k: v for k, v in vars(e.plan()).items() if k not in changing} for e in (one, other)]
        assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("samples", "audio", "'samples', which is the name of a built-in field"),
        ("reply_id", "audio", "'reply_id', which is the name of a built-in field"),
        ("a-b", "audio", "'a-b', which is no identifier"),
        ("loudness", "sound", "loudness is for 'sound': use reflection, transcript"),
        ("loudness", (), "loudness is for no kind"),
        ("loudness", None, "loudness is for None: use reflection, transcript"),
        (3, "audio", "cannot be called 3: use a string"),
    ],
)
def test_an_event_field_that_cannot_be_is_refused(name: Any, kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventField(name, kinds, max)


def test_an_event_field_needs_a_function() -> None:
    with pytest.raises(ValueError, match="loudness is computed by 3: use a function of an event and a usage"):
        EventField("loudness", "audio", 3)  # type: ignore[arg-type]


def test_two_event_fields_of_one_name_are_refused() -> None:
    one, other = EventField("rank", ("audio", "done"), max), EventField("rank", "done", max)
    with pytest.raises(ValueError, match="done events have two fields rank"):
        EngineOptions(event_fields=(one, other))
    assert EngineOptions(event_fields=(EventField("rank", "audio", max), other)).event_fields[1] is other
