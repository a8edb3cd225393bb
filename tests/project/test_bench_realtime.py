"""Sixteen callers of the real server on loopback, beside as many sessions in process."""

from __future__ import annotations

from pathlib import Path

import pytest
from benches import bench


@pytest.mark.slow
def test_sixteen_callers_hear_over_the_wire_what_sessions_hear_in_process(tmp_path: Path) -> None:
    """Every call succeeds, with committed and with detected turns, and the load is the same; how fast, the machine decides."""
    path = tmp_path / "r.json"
    bench("realtime").main(
        [
            *["--callers", "16", "--seconds", "12", "--tokens", "60", "--barge-in", "0.9"],
            "--json",
            str(path),
            "--report",
            str(tmp_path),
        ]
    )
    made = bench("record").read(path)
    gaps = [one for one in made if one.name == "realtime: gaps"]
    assert ["manual" in one.shape for one in gaps] == [True, False]
    for one in gaps:
        assert one.details["errors"] == {} and one.details["num_failed"] == 0
        assert one.details["figures"]["num_callers"] == 16 and one.details["num_requests"] >= 16
        assert one.details["c100"] is not None
    cuts = gaps[1].details["figures"]["interruptions"]
    assert cuts["num"] > 0 and cuts["sound_after_s"]["most"] == 0, "nothing is sent after speech_started"
    by_name = {one.name: one for one in made if one.name.startswith("over the wire: ")}
    first, sound = by_name["over the wire: first sound"], by_name["over the wire: sound of a reply"]
    assert first.ours is not None and first.peer is not None and first.ratio is not None
    # Replies are drawn at random from the same checkpoint and schedule.
    assert sound.ratio is not None and 0.4 < sound.ratio < 2.5
    assert {path.name for path in tmp_path.glob("*.html")} == {"manual.html", "server.html"}
