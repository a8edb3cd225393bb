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


def test_what_is_worth_most_comes_first() -> None:
    """Each goal's records are there by the second that is promised."""
    ends = {goal: part.ends_s for part in first.PARTS for goal in part.goals}
    promised = {
        "G1": 120,
        "G3": 120,
        "G4a": 180,
        "G4b": 180,
        "G5": 240,
        "G6": 240,
        "G8": 240,
        "G9a": 360,
        "G9c": 360,
        "G10": 360,
    }
    assert {goal: ends[goal] for goal in promised if ends[goal] > promised[goal]} == {}
    assert list(ends) == [*promised, "G2", "G9b"] and set(ends) <= set(record.GOALS)
    names = [part.name for part in first.PARTS]
    assert names[5:] == ["tests", "peers", "compiled"]
    times = [part.ends_s for part in first.PARTS]
    assert times == sorted(times) and times[-1] == first.LIMIT_S <= 540
    assert all(part.name in first.plan() for part in first.PARTS)


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


@pytest.mark.long
def test_a_dry_run_goes_through_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what asks for a GPU or compiles for minutes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / folder) for folder in ("engine", "kernels")))
    parts = [replace(part, ends_s=7200) for part in first.PARTS if part.name not in ("tests", "compiled")]
    assert first.run(parts, "cpu", tmp_path, quick=True) == []
    names = [one.name for one in record.read(tmp_path / first.RECORDS)]
    kinds = ["decode step", "prefill", "linear", "flow, Euler step", "first audio"]
    places = [names.index(kind) for kind in kinds if kind in names]
    assert places == sorted(places) and len(places) >= 4


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
