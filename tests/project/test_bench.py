"""What benchmarks write, and what compares and draws it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benches import BENCH, bench

record, compare, plots, report = (bench(name) for name in ("record", "compare", "plots", "report"))
CONTRACT = {
    "goal", "name", "ours", "peer", "peer_name", "ratio", "unit", "device", "dtype", "shape", "commit", "versions", "n", "median",
    "p10", "p90", "warmup", "threads", "better", "dirty", "clock_mhz", "power_w", "bytes", "flops", "command",
}  # fmt: skip


def made(ours: float = 10.0, *, ratio: float | None = None, noise: float = 0.0, **more: Any) -> Any:
    p10, p90 = ours * (1 - noise / 2), ours * (1 + noise / 2)
    values = {"name": "op", "shape": "8 rows", "unit": "us", "device": "card", "ours": ours} | more
    return record.Record(ratio=ratio, median=ours, p10=p10, p90=p90, n=5, warmup=1, **values)


def test_a_record_has_what_the_contract_names(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.json"
    some = [made(1.5, ratio=2.0, goal="G2"), made(2.0, dtype="bf16", details={"copy_bw": 1e12})]
    record.write(some, path)
    lines = json.loads(path.read_text())
    assert all(set(line) >= CONTRACT for line in lines)
    assert (
        lines[0]["commit"]
        and lines[0]["versions"]["torch"]
        and lines[0]["threads"] >= 1
        and lines[0]["command"]
    )
    assert record.read(path) == some


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": "G99"}, "no goal 'G99'"),
        ({"better": "more"}, "better is 'more'"),
        ({"ours": float("nan")}, "ours is nan"),
    ],
)
def test_a_record_refuses_what_it_cannot_mean(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(made(), **change)


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds a dict"):
        record.read(path)
    path.write_text('[{"name": "op", "size": 3}]')
    with pytest.raises(ValueError, match=r"is no record: .*size"):
        record.read(path)


def test_times_know_their_spread() -> None:
    times = record.Times(tuple(float(i) for i in range(11)), warmup=2)
    assert (times.n, times.median, times.p10, times.p90) == (11, 5.0, 1.0, 9.0)
    assert record.Times((3.0,), 0).p90 == 3.0
    peer = record.Times((20.0, 20.0), 2)
    line = record.Record.of("op", "-", times, unit="ms", device="card", peer=peer, peer_name="other")
    assert (line.ours, line.peer, line.ratio, line.n) == (5000.0, 20000.0, 4.0, 11)


def test_a_plain_read_that_moves_spoils_what_was_measured_beside_it() -> None:
    still, moving = record.Times((1.0, 1.1, 1.0), 1), record.Times((1.0, 1.0, 1.4), 1)
    assert still.unsteady is None and moving.unsteady == "the plain read moved by 32% within the record"
    assert still.ratios_to(moving) == (1.0, 1.0 / 1.1, 1.4)
    with pytest.raises(ValueError, match="shorter"):
        still.ratios_to(record.Times((1.0,), 1))


def test_things_are_timed_in_turns() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.002)

    found = record.interleaved(
        {"slow": slow, "fast": lambda: calls.append("fast")}, rounds=4, warmup=2, inner=3
    )
    assert calls == ["slow"] * 2 + ["fast"] * 2 + (["slow"] * 3 + ["fast"] * 3) * 4
    assert found["slow"].n == found["fast"].n == 4 and found["slow"].warmup == 2
    assert found["slow"].median >= 0.002 > found["fast"].median
    assert record.interleaved({"fast": int}, rounds=1, at_least_s=0.05)["fast"].n > 10
    with pytest.raises(ValueError, match="rounds 0"):
        record.interleaved({"x": int}, rounds=0)


def test_every_module_has_the_same_arguments(tmp_path: Path) -> None:
    arguments = record.parser("what").parse_args(
        ["--device", "cpu", "--quick", "--json", str(tmp_path / "x")]
    )
    assert (arguments.device, arguments.quick, arguments.json) == ("cpu", True, tmp_path / "x")


def test_parts_of_a_file_are_measured_by_several_runs(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    one, two, three = made(1.0), replace(made(2.0), shape="other"), replace(made(3.0), shape="third")
    record.report([one, two], file, append=True)
    record.report([replace(two, ours=5.0), three], file, append=True)
    assert [(x.shape, x.ours) for x in record.read(file)] == [
        (one.shape, 1.0), ("other", 5.0), ("third", 3.0)
    ]  # fmt: skip
    record.report([three], file)
    assert len(record.read(file)) == 1


def test_an_interrupted_run_says_where_its_records_are(tmp_path: Path, capsys: Any) -> None:
    def interrupted() -> Any:
        yield made()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        record.report(interrupted(), tmp_path / "x.json")
    assert capsys.readouterr().err == f"interrupted after 1 records, in {tmp_path / 'x.json'}\n"
    assert len(record.read(tmp_path / "x.json")) == 1


def test_calls_before_a_turn_are_not_timed() -> None:
    calls: list[str] = []

    def pause() -> None:
        calls.append("pause")
        time.sleep(0.02)

    runs = {name: partial(calls.append, name) for name in ("a", "b")}
    found = record.interleaved(runs, rounds=2, warmup=1, before={"b": pause})
    assert calls == ["a", "b", *["a", "pause", "b"] * 2]
    assert found["b"].median < 0.02
    assert record.Times((4.0, 6.0), 1).divided_by(2) == record.Times((2.0, 3.0), 1)


def test_a_run_that_is_cut_leaves_what_it_had(tmp_path: Path) -> None:
    def cut() -> Any:
        yield made()
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        record.report(cut(), tmp_path / "x.json")
    assert len(record.read(tmp_path / "x.json")) == 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (made(10), made(10.1), 0),  # within 2 percent
        (made(10), made(11), 1),
        (made(10), made(9), 0),
        (made(10, noise=0.2), made(11, noise=0.1), 0),  # within the spread of both
        (made(10, noise=0.2), made(12, noise=0.1), 1),
        (made(10, better="higher"), made(9, better="higher"), 1),
        (made(10, ratio=2.0), made(20, ratio=2.0), 0),  # the whole machine was slower
        (made(10, ratio=2.0), made(10, ratio=1.8), 1),
        (made(10, ratio=1.05, goal="G8"), made(10, ratio=1.2, goal="G8"), 1),  # of which less is better
        (made(10, ratio=1.2, goal="G8"), made(10, ratio=1.05, goal="G8"), 0),
        (made(10), made(99, invalid="the peer ran on one core"), 2),
        (made(10), made(10, shape="9 rows"), 2),
    ],
)
def test_a_regression_is_one_beyond_the_spread(
    tmp_path: Path, before: Any, after: Any, expected: int
) -> None:
    record.write([before], tmp_path / "a.json")
    record.write([after], tmp_path / "b.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == expected


def test_the_report_says_what_was_reached(tmp_path: Path) -> None:
    old = replace(made(5, ratio=0.7, goal="G1"), date="2020-01-01T00:00:00+00:00")
    new = made(4, ratio=0.85, goal="G1")
    record.write([new], tmp_path / "a.json")
    record.write(
        [old, made(7, ratio=1.2, goal="G8", invalid="a crippled peer"), made(3, name="norm")],
        tmp_path / "z.json",
    )
    assert report.main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    goal = next(line for line in text.splitlines() if line.startswith("| G1 "))
    assert "0.85" in goal and goal.endswith("| floor |")
    assert "invalid: a crippled peer" in text and "| norm |" in text
    assert report.main(["--results", str(tmp_path / "none")]) == 2


def test_verdicts() -> None:
    reached = {ratio: report.verdict(made(ratio=ratio, goal="G8")) for ratio in (1.0, 1.05, 1.2)}
    assert reached == {1.0: "stretch", 1.05: "floor", 1.2: "missed"}
    assert report.verdict(made(ratio=3.0)) == ""


class Axes:
    """Takes any call, and keeps those of the plots that matter."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.setdefault(name, []).append(args)


def test_plots_draw_what_they_find() -> None:
    some = [made(10, ratio=0.4, goal="G1"), made(20, ratio=1.0, goal="G8", shape="b", peer=18.0)]
    axes = Axes()
    assert plots.PLOTS["goals"](some, axes)
    assert axes.calls["barh"][0][1] == [0.5, pytest.approx(1.1)]
    axes = Axes()
    assert plots.PLOTS["latency"](some, axes)
    assert axes.calls["errorbar"][0][0] == pytest.approx([10e-6, 20e-6]) and axes.calls["errorbar"][1][
        0
    ] == pytest.approx([18e-6])
    axes = Axes()
    roof = made(10, bytes=1000, flops=4000, details={"copy_bw": 1e9, "gemm_flops": 1e10})
    assert plots.PLOTS["roofline"]([roof], axes)
    assert list(axes.calls["scatter"][0][1]) == pytest.approx([4e8])
    assert not any(function([], Axes()) for function in plots.PLOTS.values())


def test_plots_are_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "PLOTS", dict(plots.PLOTS))
    drawn = plots.plot("mine")(lambda records, axes: True)
    assert plots.PLOTS["mine"] is drawn
    with pytest.raises(ValueError, match="named 'mine' already"):
        plots.plot("mine")(lambda records, axes: False)


def test_pictures_are_written_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    figure = SimpleNamespace(savefig=lambda path, **_: saved.append(path))
    axes = SimpleNamespace(set_title=lambda name: None)
    pyplot = SimpleNamespace(subplots=lambda **_: (figure, axes), close=lambda figure: None)
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "matplotlib", SimpleNamespace(use=lambda name: None))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    monkeypatch.setattr(
        report, "PLOTS", {"yes": lambda records, axes: True, "no": lambda records, axes: False}
    )
    assert report.draw([made()], tmp_path) == ["yes.png"]
    assert saved == [tmp_path / "yes.png"]


def test_a_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "bench",
        "--json",
        "/home/somebody/out/a.json",
        "--model=/models/tiny",
        "--text",
        "tests/data/alice.txt",
    ]
    monkeypatch.setattr(sys, "argv", words)
    made = record.command()
    assert made.endswith("--json a.json --model=tiny --text tests/data/alice.txt") and "/home" not in made


def test_committed_results_are_records() -> None:
    for path in sorted((BENCH / "results").rglob("*.json")):
        assert record.read(path), f"{path} is empty"


def test_a_file_that_holds_no_records_or_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    def none() -> Iterator[record.Record]:
        raise AssertionError("nothing is to be measured")
        yield

    spoilt, folder = tmp_path / "spoilt.json", tmp_path / "folder.json"
    spoilt.write_text("no records")
    folder.mkdir()
    with pytest.raises(SystemExit, match=r"spoilt\.json is not JSON"):
        record.report(none(), spoilt, append=True)
    with pytest.raises(SystemExit, match=r"folder\.json: .*directory"):
        record.report(none(), folder)
    assert record.report(iter(()), tmp_path / "new.json") == [] and not (tmp_path / "new.json").exists()
