"""The order in which a GPU is asked, its budget, and that no case keeps the GPU waiting for numbers of the host."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import bench
from paths import ROOT

from innervoice_kernels.testing import OPS

first, record = bench("first"), bench("record")
MOST_NUMBERS = 50_000_000
# Seconds after the beginning by which the first records of a goal are there.
PROMISED = {
    "G1": 120, "G2": 120, "G3": 120, "G4a": 180, "G4b": 180, "G5": 240, "G6": 240, "G8": 240, "G9a": 360, "G9c": 360, "G10": 360,
}  # fmt: skip
MOST_FILES = 8


def test_what_is_worth_most_comes_first() -> None:
    """Each goal's records are there by the second that is promised."""
    ends: dict[str, int] = {}
    for part in first.PARTS:
        for goal in part.goals:
            ends.setdefault(goal, part.ends_s)
    assert {goal: ends[goal] for goal in PROMISED if ends[goal] > PROMISED[goal]} == {}
    assert list(ends) == [*PROMISED, "G9b"] and set(ends) <= set(record.GOALS)
    names = [part.name for part in first.PARTS]
    assert names[5:] == ["tests", "peers", "compiled"]
    times = [part.ends_s for part in first.PARTS]
    assert times == sorted(times) and times[-1] == first.LIMIT_S <= 540


def test_the_plan_is_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds, name and goals of each part."""
    assert first.main(["--plan"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(int(line[0]), line[2]) for line in lines] == [(p.ends_s, p.name) for p in first.PARTS]
    for words, part in zip(lines, first.PARTS, strict=True):
        assert words[3 : 3 + len(part.goals)] == list(part.goals)


def script(tmp_path: Path, name: str, body: str) -> Any:
    """A part that is a script of its own, which gets the arguments of all parts."""
    path = tmp_path / f"{name}.py"
    path.write_text("import json, sys, time\nout = sys.argv[sys.argv.index('--json') + 1]\n" + body)
    return first.Part(name, (), 0, (str(path),))


def test_a_part_that_is_cut_off_keeps_what_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its records so far are kept, the next part runs, one without time left does not; three files are left at most."""
    line = json.dumps([{"name": "op", "shape": "-", "unit": "us", "device": "card", "ours": 1.0}])
    parts = [
        script(
            tmp_path, "slow", f"open(out, 'w').write({line!r})\nprint('begun', flush=True)\ntime.sleep(60)"
        ),
        script(tmp_path, "good", f"open(out, 'w').write({line!r})"),
        script(tmp_path, "late", "raise SystemExit(0)"),
    ]
    timed = [replace(part, ends_s=ends) for part, ends in zip(parts, (2, 60, 0), strict=True)]
    results = tmp_path / "results"
    assert first.run(timed, "cpu", results, quick=True) == ["slow", "late"]
    assert len(record.read(results / first.RECORDS)) == 2
    assert sorted(path.name for path in results.iterdir()) == [first.RECORDS, "log.txt"]
    printed = capsys.readouterr().out
    assert "begun" in printed and printed == (results / "log.txt").read_text()


def test_records_of_an_earlier_run_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    """Neither those of all parts nor what a part had left when it was cut off with its starter."""
    line = json.dumps([{"name": "op", "shape": "-", "unit": "us", "device": "card", "ours": 1.0}])
    part = replace(script(tmp_path, "fails", "raise SystemExit(1)"), ends_s=60)
    results = tmp_path / "results"
    results.mkdir()
    for path in (results / first.RECORDS, part.records(results)):
        path.write_text(line)
    assert first.run([part], "cpu", results, quick=True) == ["fails"]
    assert [path.name for path in results.iterdir()] == ["log.txt"]


@pytest.mark.slow
def test_a_rehearsal_goes_through_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, over small shapes: the goals come in the order that is promised, and none of the records counts as reached."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / folder) for folder in ("engine", "kernels")))
    parts = [replace(part, ends_s=20 * part.ends_s) for part in first.PARTS]  # whatever else the cores do
    assert first.run(parts, "cpu", tmp_path, quick=True) == []
    records = record.read(tmp_path / first.RECORDS)
    with_goal = [one for one in records if one.goal is not None]
    assert list(dict.fromkeys(one.goal for one in with_goal)) == [*PROMISED, "G9b"]
    assert all(one.invalid for one in with_goal)
    assert {one.invalid for one in with_goal if one.goal in ("G1", "G4a", "G9a", "G9b")} == {record.REHEARSAL}
    failed = [one for one in records if one.invalid and "failed" in one.invalid]
    assert {one.peer_name for one in failed} <= {"FlashInfer", "bitsandbytes NF4"}  # which are not installed
    assert len(list(tmp_path.iterdir())) <= MOST_FILES
    log = (tmp_path / "log.txt").read_text()
    assert "none" in log.splitlines()[-1] and "skipped" in log


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_inputs_of_real_cases_are_drawn_on_the_device(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host draws next to nothing: random numbers of a layer's weights take it seconds."""
    drawn = [0]

    def counted(name: str) -> Any:
        real = getattr(torch, name)

        def draw(*args: Any, generator: Any = None, device: Any = None, **kwargs: Any) -> Any:
            made = real(*args, device="meta", **kwargs)
            if torch.device(device).type == "cpu":
                drawn[0] += made.numel()
                return torch.zeros(made.shape, dtype=made.dtype, device="cpu")
            return made

        return draw

    for name in ("randn", "rand", "randint", "randperm"):
        monkeypatch.setattr(torch, name, counted(name))
    monkeypatch.setattr("innervoice_kernels.testing.case.torch.Generator", Host)
    for case in op.real:
        drawn[0] = 0
        with suppress(NotImplementedError):  # places that only numbers could tell, behind the last draw
            case.make_inputs(op.dtypes[0], "meta", Device())
        assert drawn[0] <= MOST_NUMBERS, f"{case.name}: {drawn[0]} numbers"


class Device:
    """A generator of a device that is not there."""

    device = torch.device("meta")

    def initial_seed(self) -> int:
        return 0


class Host:
    """One of the CPU."""

    device = torch.device("cpu")

    def manual_seed(self, seed: int) -> Host:
        return self
