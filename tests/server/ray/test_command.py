"""`innervoice serve --replicas`: what it refuses before anything is started, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ENGINE, ROOT
from ray_cluster import PATIENCE_S, SLOW_MACHINE, free_port, wait_for

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


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def wrapped() -> None:
    """Code that makes another exception of each, as native code does."""
    try:
        interrupt()
    except BaseException as error:
        raise SystemError("returned a result with an exception set") from error


def swallowed() -> None:
    with suppress(BaseException):
        interrupt()


def of_ray() -> None:
    """A signal behind `ray.init`, whose handler is this."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    interrupt()


@pytest.mark.parametrize("work", [interrupt, wrapped, swallowed, of_ray], ids=lambda work: work.__name__)
def test_a_signal_ends_the_block_and_what_was_started(work: Callable[[], None]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray.command import until_a_signal

    before = signal.getsignal(signal.SIGTERM)
    ended = []
    with until_a_signal() as signals, ExitStack() as ends:
        ends.callback(ended.append, "Serve")
        work()
        signals.wait()
        raise AssertionError("it goes on behind the signal")
    assert ended == ["Serve"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_failure_stays_one() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray.command import until_a_signal

    with pytest.raises(ZeroDivisionError), until_a_signal():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("applications", "port", "complaint"),
    [
        (["other"], 8001, r"listen on 127\.0\.0\.1:8001 already: give --host 127\.0\.0\.1 --port 8001"),
        (["innervoice"], 8000, "has an application innervoice already: end the other"),
        (["other"], 8000, None),
    ],
)
def test_a_cluster_that_serves_already(
    applications: list[str], port: int, complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from ray.serve.config import HTTPOptions

    from innervoice.server.ray import command

    client = SimpleNamespace(http_config=HTTPOptions(host="127.0.0.1", port=port))
    monkeypatch.setattr(command, "_get_global_client", lambda **options: client)
    status = SimpleNamespace(applications=dict.fromkeys(applications))
    monkeypatch.setattr(command.serve, "status", lambda: status)
    asked = HTTPOptions(host="127.0.0.1", port=8000)
    if complaint is None:
        assert not command.has_to_start(asked)
        return
    with pytest.raises(ValueError, match=complaint):
        command.has_to_start(asked)


@pytest.mark.parametrize(
    ("address", "device", "gpus", "expected"),
    [
        (None, "cpu", 8, 0),
        (None, None, 0, 0),
        (None, "auto", 2, 1),
        (None, "cuda", 4, 1),
        (
            None,
            None,
            1,
            "2 replicas need a GPU each, and this machine has 1: give --replicas 1, or --device cpu",
        ),
        (None, "cuda", 0, "this machine has 0: give --device cpu"),
        ("head:6379", "cpu", 8, 0),
        ("head:6379", None, 0, 0),
        ("head:6379", None, 2, 1),
        ("head:6379", None, 1, 1),
        ("head:6379", "cuda", 0, 1),
    ],
)
def test_the_gpus_of_each_replica(
    address: str | None, device: str | None, gpus: int, expected: int | str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray import command

    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: -1 if address else gpus)
    monkeypatch.setattr(command.ray, "cluster_resources", lambda: {"GPU": float(gpus)} if gpus else {})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            command.gpus_of_each(address, device, 2)
        return
    assert command.gpus_of_each(address, device, 2) == expected
    warns = address is not None and expected == 1 and gpus < 2
    assert ("it serves once it has more" in capsys.readouterr().err) is warns


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["Deploying failed: no room."], "Deploying failed: no room"),
        (["Deploying failed.", "Traceback:\n  File 1\nValueError: device 'cuda' is not here\n\n"], "device 'cuda' is not here"),
        (["RuntimeError: Traceback\n  x\ninnervoice.types.OutOfCapacity: no pages\nmore"], "no pages"),
        (["a.b.FileNotFoundError: first", "ray.RayTaskError(KeyError): second"], "first"),
    ],
)  # fmt: skip
def test_what_a_replica_said_that_did_not_start(messages: list[str], expected: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    from innervoice.server.ray.command import last_error

    assert last_error(messages) == expected


def processes(session: int) -> dict[int, str]:
    """Processes of a session that have not ended, with their names."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, _, _, of_session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(of_session) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["gcs_server", "ray::ServeController"])
def test_a_signal_while_it_starts_leaves_nothing_behind(moment: str, tiny_dir: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")
    words = [
        "serve",
        "--model",
        str(tiny_dir),
        "--device",
        "cpu",
        "--replicas",
        "1",
        "--port",
        str(free_port()),
    ]
    environment = os.environ | SLOW_MACHINE | {"PYTHONPATH": f"{ENGINE.parent}{os.pathsep}{ROOT / 'kernels'}"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "innervoice", *words], env=environment, start_new_session=True, stderr=subprocess.PIPE
    )  # fmt: skip
    wait_for(lambda: any(moment in name for name in processes(process.pid).values()))
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    wait_for(lambda: not processes(process.pid), 90.0)
