"""What `innervoice serve --replicas` refuses before anything is started."""

from __future__ import annotations

import socket
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


def test_a_port_that_is_taken_is_refused_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be listened on.*choose another"):
            start_replicas({"model": "m"}, "m", ServerOptions(port=port), 2)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray.command import check_address

    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS is {address}, where no Ray cluster answers"):
        check_address(address)


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1"])
def test_other_addresses_are_for_ray_to_check(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray.command import check_address

    check_address(address)
