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
    "flow_attend",
}  # compiled in a few seconds together
compiles = pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="needs Triton, not interpreted")

WORDS = ("launch_dependents", "wait")
TOUCHES = re.compile(r"\b(ld\.global|cp\.async\.c|st\.global|atom\.|red\.)")

REGISTERS, SHARED_BYTES = 16, 2048  # by which a record may differ from the table's: another ptxas
MORE_SLOTS = 1.1  # the same, as a factor


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
                assert made.get("programs") == expected.get("programs"), (made, expected)
                assert made.get("slots", 0) <= MORE_SLOTS * expected.get("slots", 0), (made, expected)
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


def places(record: dict[str, Any]) -> int:
    """Programs of a kernel that an H200 holds at once."""
    threads = 32 * record["config"]["num_warps"]
    by_registers = REGISTERS_OF_SM // (-(-record["registers"] // 8) * 8 * threads)
    by_memory = SHARED_OF_SM // (record["shared_bytes"] + 1024)
    return int(SMS * min(by_registers, by_memory))


def test_the_gate_of_a_step_runs_in_one_wave() -> None:
    """428 programs of 32 columns each of GLM-4-Voice's 13,696, all at once: a second wave would be as long as the first."""
    gates = [
        r
        for r in table()
        if r["name"] == "skinny" and r["config"]["GATED"] and r["config"]["dtype"] == "bf16"
    ]
    assert gates
    for record in gates:
        assert -(-13696 // record["config"]["BLOCK_N"]) <= places(record), record


def test_attention_of_32_rows_runs_in_one_wave() -> None:
    """Eight splits of 2,048 keys, two groups; of a step and of a batch of the runner."""
    attends = [
        r for r in table() if r["name"] in ("decode", "step_attention") and r["config"]["dtype"] == "bf16"
    ]
    many = [r for r in attends if r["config"]["num_stages"] == 4]
    assert {record["name"] for record in many} == {"decode", "step_attention"}
    for record in many:
        assert places(record) >= 32 * 8 * 2, record
    for record in attends:  # with reflection weights or pages of fp8 as without
        assert places(record) >= 3 * SMS, record


def test_splits_are_on_their_way_together_when_they_are_merged() -> None:
    """Four parts of 8 KiB, each four copies of 16 bytes a thread, before the first is added."""
    merged = [r for r in table() if r["name"] in ("decode", "step_attention")]
    assert len(merged) > 10
    for record in merged:
        assert record["copies"] >= 4 * record["config"]["M"] * record["config"]["BLOCK_D"] * 4 / 128 / 16, (
            record
        )


# A transformer of the flow over one reply's window, both branches, without its norms: half of what one kernel took that did it
# all, a frame's heads one after the other and the norm anew for each block of hidden units.
SLOTS_OF_A_TRANSFORMER = 105_700 // 2


def test_a_transformer_of_the_flow_keeps_all_multiprocessors_busy_for_few_slots() -> None:
    """Five launches: queries with keys and values, attention, its projection, and both products of the feed-forward."""
    launches = [r for r in table() if r["name"].startswith("flow_") and r["config"]["dtype"] == "bf16"]
    products = [r["config"] for r in launches if r["name"] == "flow_linear"]
    sizes = sorted((config["DEPTHS"], config["COLUMNS"]) for config in products)
    assert sizes == [(256, 1024), (256, 1536), (512, 256), (1024, 256)] and len(launches) == 5
    assert all(record["programs"] >= SMS for record in launches)
    assert sum(record["slots"] for record in launches) <= SLOTS_OF_A_TRANSFORMER


def test_slots_count_loops_as_often_as_they_run() -> None:
    """Ten instructions, of which a loop has three and one behind the end branches to itself."""
    listing = "\n".join(
        [
            *(f"        /*{i:04x}*/   IADD3 R{i}, R0, 1, RZ ;" for i in range(4)),
            ".L_x_1:",
            *(f"        /*{i:04x}*/   FFMA R{i}, R1, R2, R3 ;" for i in range(4, 6)),
            "        /*0060*/   @!P0 BRA `(.L_x_1) ;",
            "        /*0070*/   @P1 BRA `(.L_x_2) ;",
            "        /*0080*/   EXIT ;",
            ".L_x_2:",
            "        /*0090*/   BRA `(.L_x_2);",
        ]
    )
    slots = bench("slots")
    assert slots.instructions(listing, 1) == 10
    assert slots.instructions(listing, 5) == 10 + 4 * 3


CLOCK_BYTES = 16.5  # that 4.3 TB/s bring an SM in a clock of 1.98 GHz


def share_of_slots(record: dict[str, Any]) -> float:
    """Issue slots of a round of a quantised product's loop, of the clocks that its weights take to arrive."""
    config = record["config"]
    if record["name"] == "scaled_linear":
        arriving = config["BLOCK_N"] * config["BLOCK_K"]
    else:
        numbers = 2 if config["MINIMUM"] else 1  # of 2 bytes, for each group of a column
        groups = 2 * config["BLOCK_J"] / config["GROUP"]
        arriving = config["BLOCK_N"] * (config["BLOCK_J"] + 2 * numbers * groups)
    return float(record["loop_slots"] * CLOCK_BYTES * config["num_warps"] / (4 * arriving))


def test_unpacking_leaves_the_bandwidth_to_the_weights() -> None:
    """A step's products of bfloat16 rows: what their instructions take of the time that memory does."""
    shares: dict[str, float] = {}
    for record in table():
        if "loop_slots" in record and record["shape"].split(", ")[1] == "1 rows":
            form = record["shape"].split(", ")[2]
            shares[form] = max(shares.get(form, 0.0), share_of_slots(record))
    assert set(shares) == {"int8", "fp8", "int4 32", "int4 128", "symmetric 32"}
    assert max(shares["int8"], shares["fp8"]) <= 0.45, shares
    assert max(share for form, share in shares.items() if form not in ("int8", "fp8")) <= 0.65, shares


@compiles
def test_small_kernels_compile_as_the_table_says() -> None:
    hold(QUICK)


@compiles
@pytest.mark.slow
def test_all_kernels_compile_as_the_table_says() -> None:
    hold(None)
