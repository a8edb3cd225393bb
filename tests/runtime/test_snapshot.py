"""An exported session whose content was changed, with a checksum that fits: refused in one sentence, or
harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_core import VOCABULARY, Received, World, program

from innervoice.runtime.snapshot import FORMAT, SessionSnapshot
from innervoice.schedule import Schedule

SCHEDULE = {
    "cycle": [["reflection", 5], ["transcript", 3], ["speech", 4]],
    "reflection_weight": 1.1,
}
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60),
    st.sampled_from([-(2**31), 2**31, 10**30, 1.5, -1e308, "speech", "", {}, [], [3, 99], [None]]),
)


@cache
def exported() -> str:
    """A session in the middle of its second reply, as JSON."""
    world = World()
    world.core.sessions.open("one")
    made = program(Schedule.from_dict(SCHEDULE))
    world.submit("first", [5, 9, 2], made, session_id="one", most=8)
    world.run()
    world.submit("second", [4, 4], made, session_id="one", most=30)
    while len(world.received["second"].ids) < 9:
        world.step()
    return json.dumps(world.core.sessions.export("one", "model").to_dict())


def to_bytes(values: Any) -> bytes:
    body = json.dumps(values).encode()
    return b"\n".join((FORMAT.encode(), hashlib.sha256(body).hexdigest().encode(), body))


def read(values: Any) -> SessionSnapshot:
    """As an engine reads it."""
    snapshot = SessionSnapshot.from_bytes(to_bytes(values), "model")
    snapshot.check(VOCABULARY.size, program, lambda num_tokens: 10_000.0 * num_tokens)
    return snapshot


def go_on(snapshot: SessionSnapshot) -> World:
    """Restore it, end the reply that it holds, and answer another prompt."""
    world = World()
    core = world.core
    core.sessions.open("again", snapshot)
    paused = snapshot.paused
    if paused is not None:
        made = program(Schedule.from_dict(paused.schedule))
        sampling = replace(paused.sampling, temperature=0.0, top_k=0, top_p=1.0, seed=0)
        request = replace(world.request("rest", [], made, session_id="again"), sampling=sampling)
        core.submit(request, world.now)
        world.received["rest"] = Received()
        world.run()
    try:
        world.submit("next", [7], program(Schedule.from_dict(SCHEDULE)), session_id="again", most=5)
    except ValueError as error:
        if "more than the cache holds" not in str(
            error
        ):  # a reply that asked for more has filled the session
            raise
    world.run()
    core.check_integrity()
    return world


def paths(values: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in it, whole lists among them."""
    children = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    return [path for key, value in children for path in ((*above, key), *paths(value, (*above, key)))]


def test_an_export_is_read_as_it_was_written() -> None:
    values = json.loads(exported())
    snapshot = read(values)
    assert json.loads(json.dumps(snapshot.to_dict())) == values
    assert snapshot.paused is not None and snapshot.paused.num_tokens == 9
    world = go_on(snapshot)
    assert world.received["rest"].done is not None and world.received["rest"].done.finish_reason == "length"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_changed_value_is_refused_or_harmless(data: st.DataObject) -> None:
    values = json.loads(exported())
    *above, last = data.draw(st.sampled_from(paths(values)))
    target = values
    for key in above:
        target = target[key]
    target[last] = data.draw(ANYTHING)
    try:
        snapshot = read(values)
    except ValueError:
        return
    world = go_on(snapshot)
    assert all(received.done is not None for received in world.received.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["ids"].__setitem__(0, 48), "id 48 in ids, outside the vocabulary of 48"),
        (lambda v: v["injected"].append(-1), "id -1 in injected"),
        (lambda v: v["ids"].pop(), "ids, .* roles and .* replies: each token has one"),
        (lambda v: v["roles"].__setitem__(0, 4), "4 in roles: each must be from 0 to 3"),
        (lambda v: v["replies"].__setitem__(0, 3), "3 in replies: each must be from 0 to 2"),
        (
            lambda v: v["weights"].__setitem__(0, 0.5),
            "weights is .*: it must be a list of numbers that begins with 0",
        ),
        (lambda v: v["weights"].__setitem__(1, 1e308), "weights is .*: it must be within"),
        (lambda v: v["paused"].update(num_tokens=8), "has 8 tokens, and 9 of"),
        (lambda v: v["paused"].update(finish="over"), "finish is 'over'"),
        (lambda v: v["paused"]["cursor"].update(_row=999), "row is 999: it must be 0 to"),
        (lambda v: v["paused"]["cursor"].update(version=9), "version 9"),
        (lambda v: v["paused"]["cursor"].update(_count=10**9), "count is 1000000000: it must be 0 to"),
        (lambda v: v["paused"]["cursor"].update(granted=[10**30]), r"granted\[0\] is 10+: it must be 0 to"),
        (lambda v: v["paused"].update(num_samples=10**30), "num_samples is 10+: it must be 0 to"),
        (lambda v: v["paused"].update(num_samples=10**9), "num_samples is 10+: its 9 tokens make at most"),
        (lambda v: v["paused"]["schedule"].update(cycle=[]), "cycle is empty"),
        (
            lambda v: v["paused"]["sampling"].update(top_k="many"),
            "Sampling.top_k is 'many': use an integer or None",
        ),
        (lambda v: v["paused"]["sampling"].pop("seed"), "it must be an object of"),
        (lambda v: v.pop("roles"), "it must be an object of head, ids"),
    ],
)
def test_damage_is_named(change: Callable[[Any], object], message: str) -> None:
    values = json.loads(exported())
    change(values)
    with pytest.raises(ValueError, match=message):
        read(values)


def test_another_model_and_no_json_are_refused() -> None:
    with pytest.raises(ValueError, match="another model"):
        SessionSnapshot.from_bytes(to_bytes(json.loads(exported())), "other")
    body = b"{"
    data = b"\n".join((FORMAT.encode(), hashlib.sha256(body).hexdigest().encode(), body))
    with pytest.raises(ValueError, match="its content is no JSON"):
        SessionSnapshot.from_bytes(data, "model")
