"""What `innervoice serve --replicas` refuses before anything is started."""

from __future__ import annotations

import sys

import pytest

from innervoice.server.options import ServerOptions
from innervoice.tools.cli.serve import start_replicas


@pytest.mark.parametrize(
    ("replicas", "port", "complaint"),
    [(0, 8000, "replicas is 0: it must be 1 or more"), (2, 0, "port is 0: with --replicas give the port")],
)
def test_bad_numbers_are_named(replicas: int, port: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        start_replicas({"model": "m"}, "m", ServerOptions(port=port), replicas)


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "innervoice.server.ray.command", raising=False)
    with pytest.raises(ValueError, match=r"ray is not installed.*pip install 'innervoice\[server,ray\]'"):
        start_replicas({"model": "m"}, "m", ServerOptions(), 2)
