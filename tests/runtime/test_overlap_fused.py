"""Replies of several contexts whose tokens the interpreted device step draws, against the same drawn by the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from interpreted import need_interpreter

need_interpreter()

from overlapped import compare, make_world  # noqa: E402
from scripted_core import FREE, VOCABULARY, World, program  # noqa: E402
from stepped import small_model  # noqa: E402

from innervoice.runtime.fusion import Fusion  # noqa: E402
from innervoice.runtime.overlap import Overlap  # noqa: E402
from innervoice.schedule import Schedule, Segment  # noqa: E402

WEIGHTED = program(
    Schedule(
        (Segment("transcript", 2), Segment("speech", 3), Segment("reflection", 3)), reflection_weight=1.4
    )
)
WARM = {"temperature": 0.8, "ignore_eos": True, "logprobs": True}
THREE = [[5, 9, 2, 7, 1], [5, 9, 2, 7, 6, 3, 3], [4]]


def submit(world: World, name: str, fusion: Fusion, contexts: list[list[int]], **more: Any) -> None:
    others = tuple(map(tuple, contexts[1:]))
    options = {"most": 9, "is_live": False, "sampling": WARM} | more
    world.submit(
        name, contexts[0], options.pop("schedule", WEIGHTED), 12345, fusion=fusion, contexts=others, **options
    )


def overlap_of(world: World) -> Overlap:
    assert isinstance(world.core.decoder, Overlap)
    return world.core.decoder


def by_device(world: World) -> set[str]:
    """The replies that hold rows of the device's batch."""
    return {row.reply.reply_id for row in overlap_of(world)._rows}


def test_contexts_and_a_reply_beside_them_are_the_host_s() -> None:
    """The reply beside them begins first and ends first, so that the last context takes its row."""
    model = small_model(vocabulary=VOCABULARY)
    counted: list[list[int]] = [[], []]
    worlds = [
        make_world(model, stepped, step_s=lambda rows, fed, at=at: at.append(rows) or 0.01)
        for stepped, at in zip((False, True), counted, strict=True)
    ]
    seen = []
    for world in worlds:
        world.submit("alone", [8, 8, 1], FREE, 7, most=4, is_live=False, sampling=WARM)
        world.step()
        submit(world, "pragmatic", Fusion.pragmatic(-6.0, 0.9, (0.5, 0.3, 0.2)), THREE, caps=(2, 1))
        for _ in range(4):
            world.step()
        if world is worlds[1]:
            seen = [by_device(world), len(overlap_of(world)._rows)]
            world.core.decoder.settle()
            world.core.check_integrity()
            reply = world.core.table.get("pragmatic")
            believed = overlap_of(world).device_step.rows.log_prior(
                [row.number for row in overlap_of(world)._rows_of[reply]]
            )
            assert believed != pytest.approx(reply.fused.fusing.log_prior), "the prior follows the tokens"
        world.run()
    compare((worlds[0], worlds[1]))
    assert seen[0] >= {"pragmatic"} and seen[1] >= 3
    assert [max(rows) for rows in counted] == [4, 4] and {rows[-1] for rows in counted} == {3}
    worlds[0].submit("plain", THREE[0], WEIGHTED, 12345, most=9, is_live=False, sampling=WARM, caps=(2, 1))
    worlds[0].run()
    assert worlds[1].received["pragmatic"].ids != worlds[0].received["plain"].ids
    assert overlap_of(worlds[1]).device_step.stats().eager_steps >= 9 and not overlap_of(worlds[1])._rows_of


@pytest.mark.slow
def test_every_kind_is_the_host_s_and_what_does_not_fit_waits() -> None:
    """Of 6 rows guidance has 2 and contrast 2, and a function, the host's own, has 2; three more wait for rows."""
    model = small_model(vocabulary=VOCABULARY)
    worlds = [make_world(model, stepped, num_pages=400, max_rows=6) for stepped in (False, True)]
    for world in worlds:
        submit(world, "guidance", Fusion.guidance(1.8), THREE[:2], most=11)
        submit(world, "contrast", Fusion.contrast(0.5, 0.1), THREE[1:], most=11, schedule=FREE)
        submit(world, "function", Fusion.of(lambda logits: logits.mean(0)), THREE[:2], most=2)
        for _ in range(4):
            world.step()
        if world is worlds[1]:
            assert by_device(world) == {"guidance", "contrast"}
        submit(world, "pragmatic", Fusion.pragmatic(), THREE, most=3, sampling={"temperature": 0.0})
        world.step()
        assert world.core.table.num_waiting == 1
        while not world.received["pragmatic"].ids:
            world.step()
        if world is worlds[1]:
            assert "pragmatic" in by_device(world)
        world.run()
    compare((worlds[0], worlds[1]))


@pytest.mark.slow
@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_contexts_that_are_preempted_go_on_with_what_was_believed(preempt: Any) -> None:
    model = small_model(vocabulary=VOCABULARY)
    worlds = make_world(model, False, preempt=preempt), make_world(model, True, preempt=preempt)
    for world in worlds:
        submit(world, "reply", Fusion.pragmatic(-6.0), THREE, most=9)
        while len(world.received["reply"].ids) < 4:
            world.step()
        world.core.decoder.settle()
        reply = world.core.table.get("reply")
        prior = reply.fused.fusing.log_prior
        world.core.admission.preempt(reply.table_index)
        if world is worlds[1]:
            assert reply.device_row is None and reply.fused.fusing.log_prior != prior
        world.run()
    compare(worlds)


@pytest.mark.slow
def test_a_cancelled_reply_frees_its_rows() -> None:
    world = make_world(small_model(vocabulary=VOCABULARY), True)
    submit(world, "first", Fusion.pragmatic(), THREE, most=30)
    for _ in range(4):
        world.step()
    assert by_device(world) == {"first"}
    world.core.cancel("first")
    world.core.check_integrity()
    assert not overlap_of(world)._rows and not overlap_of(world).device_step.rows.is_fused
    world.run()
    assert world.pool.num_available == world.pool.num_pages
    made = world.requests["first"]
    fewer = replace(made.sampling, max_new_tokens=4)
    world.core.submit(replace(made, reply_id="second", sampling=fewer), world.now)
    world.received["second"] = type(world.received["first"])()
    world.run()
    assert world.received["second"].done.finish_reason == "length"
