"""The kernels compiled ahead of time for sm_90: nothing spills, registers and shared memory are the checked-in table's."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from benches import BENCH, bench

from innervoice_kernels.jit import HAS_TRITON, INTERPRETED

QUICK = {
    "rms_norm",
    "silu_mul",
    "store_kv",
    "summary",
    "prepare",
    "begin",
    "end",
}  # compiled in a few seconds together
compiles = pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="needs Triton, not interpreted")

WORDS = ("launch_dependents", "wait")
TOUCHES = re.compile(r"\b(ld\.global|cp\.async\.c|st\.global|atom\.|red\.)")

REGISTERS, SHARED_BYTES = 16, 2048  # by which a record may differ from the table's: another ptxas


def table() -> list[dict[str, Any]]:
    return list(json.loads((BENCH / "aot_sm90.json").read_text()))


def key(record: dict[str, Any]) -> str:
    return json.dumps([record["name"], record["shape"], record["config"]], sort_keys=True)


def hold(names: set[str] | None) -> None:
    aot, known = bench("aot"), {key(record): record for record in table()}
    seen = set()
    for name, shape, launch in aot.launches_of_all():
        expected = known.get(key({"name": name, "shape": shape, "config": aot.describe(launch)}))
        assert expected is not None, (
            f"{name} at {shape} is not in the table: run python -m bench.aot --json bench/aot_sm90.json"
        )
        seen.add(key(expected))
        if names is None or name in names:
            made = aot.record(name, shape, launch)
            if made["triton"] == expected["triton"]:
                assert made["spills"] == 0, made
                assert abs(made["registers"] - expected["registers"]) <= REGISTERS, (made, expected)
                assert abs(made["shared_bytes"] - expected["shared_bytes"]) <= SHARED_BYTES, (made, expected)
            if launch.options.get("launch_pdl"):
                waits_first(aot.compiled(launch).asm["ptx"])
    assert seen == set(known)


def waits_first(ptx: str) -> None:
    """A dependent kernel lets the next one begin and waits for the one before, once, ahead of all that touches memory."""
    lines = [line.strip() for line in ptx.splitlines()]
    places = {
        word: [i for i, line in enumerate(lines) if line.startswith(f"griddepcontrol.{word}")]
        for word in WORDS
    }
    assert {word: len(found) for word, found in places.items()} == dict.fromkeys(WORDS, 1)
    touches = [i for i, line in enumerate(lines) if TOUCHES.search(line)]
    ends = [i for i, line in enumerate(lines) if line.startswith("ret;")]
    assert (
        touches and places["launch_dependents"] < places["wait"] and places["wait"][0] < min(touches + ends)
    )


def test_nothing_spills_in_the_table() -> None:
    records = table()
    assert len(records) > 50
    assert [record for record in records if record["spills"]] == []
    limit = 227 * 1024  # shared memory that a block may have on sm_90
    assert [record for record in records if record["shared_bytes"] > limit] == []


SMS, REGISTERS_OF_SM, SHARED_OF_SM = (
    132,
    65536,
    233472,
)  # of an H200; a block takes a KiB of shared memory besides


def test_the_gate_of_a_step_runs_in_one_wave() -> None:
    """428 programs of 32 columns each of GLM-4-Voice's 13,696, all at once: a second wave would be as long as the first."""
    gates = [
        r
        for r in table()
        if r["name"] == "skinny" and r["config"]["GATED"] and r["config"]["dtype"] == "bf16"
    ]
    assert gates
    for record in gates:
        threads = 32 * record["config"]["num_warps"]
        by_registers = REGISTERS_OF_SM // (-(-record["registers"] // 8) * 8 * threads)
        by_memory = SHARED_OF_SM // (record["shared_bytes"] + 1024)
        programs = -(-13696 // record["config"]["BLOCK_N"])
        assert programs <= SMS * min(by_registers, by_memory), record


@compiles
def test_small_kernels_compile_as_the_table_says() -> None:
    hold(QUICK)


@compiles
@pytest.mark.slow
def test_all_kernels_compile_as_the_table_says() -> None:
    hold(None)
