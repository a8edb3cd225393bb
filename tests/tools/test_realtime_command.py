"""innervoice bench realtime from the command line, over real sockets, in real time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benches import bench
from scripted_realtime import Script, ScriptedServer
from websockets.asyncio.server import serve

from innervoice.tools.cli.main import main
from innervoice.tools.realtime_bench.settings import CallSettings
from innervoice.tools.realtime_bench.wire import CallFailed, Wire


@contextmanager
def listening(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, ScriptedServer]]:
    """A scripted server on a port of loopback, in a thread -> its address."""
    server = ScriptedServer(script)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    port: list[int] = []

    async def work() -> None:
        async with serve(server.serve, "127.0.0.1", 0, process_request=server.admit, ssl=tls) as listener:
            port.append(listener.sockets[0].getsockname()[1])
            stop.append(asyncio.Event())
            started.set()
            await stop[0].wait()

    stop: list[asyncio.Event] = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(work()), daemon=True)
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield f"{'ws' if tls is None else 'wss'}://127.0.0.1:{port[0]}/v1/realtime", server
    finally:
        loop.call_soon_threadsafe(stop[0].set)
        thread.join(10)
        loop.close()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    soundfile.write(folder / "short.wav", np.full(4800, 0.5, np.float32), 24000)
    return folder


def test_a_run_prints_a_table_and_writes_its_files(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script("beta", ((0.05, 0.8), (0.1, 0.4)), silence_s=0.2, answer_s=0.05)
    names = {"--json": "r.json", "--out": "t.jsonl", "--report": "report"}
    files = [word for flag, name in names.items() for word in (flag, str(tmp_path / name))]
    session = tmp_path / "session.json"
    session.write_text('{"instructions": "Be brief."}')
    words = [
        "--callers",
        "4",
        "--num-turns",
        "2",
        "--think-s",
        "0",
        "--audio",
        str(questions),
        "--api-key",
        "k",
    ]
    with listening(script) as (url, server):
        code = main(["bench", "realtime", "--url", url, *words, "--session", str(session), *files])
    shown = capsys.readouterr().out
    records = bench("record").read(tmp_path / "r.json")
    assert code == (3 if records[0].invalid else 0), "the machine may be too busy for a valid run"
    assert "n: 8 of 8 planned turns came to an end and 8 had sound" in shown
    assert "8 turns in 4 calls" in shown and "first sound after the question, ms" in shown
    assert "underruns: 0 in 0 of 8 replies; calls without one: 100%" in shown
    assert {headers["authorization"] for headers in server.headers} == {"Bearer k"} and len(
        server.headers
    ) == 5
    assert all(events[0]["session"]["instructions"] == "Be brief." for events in server.received)
    [first] = [one for one in records if one.name == "realtime: audio_ttfp_ms"]
    assert first.n == 8 and 250 <= first.ours < 5000, "0.2 s of silence, 0.05 s to the answer and its sound"
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 8
    assert "</html>" in (tmp_path / "report" / "report.html").read_text()
    assert main(["bench", "metrics", str(tmp_path / "t.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audio_ttfp_ms"]["median"] == first.ours


def test_a_server_that_refuses_everybody_is_one_sentence_beside_the_table(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(Script(fault="401")) as (url, _):
        words = ["--callers", "2", "--audio", str(questions), "--json", str(tmp_path / "r.json")]
        assert main(["bench", "realtime", "--url", url, *words]) == 2
    written = capsys.readouterr()
    assert (
        "failed: 2 x HTTP 401 invalid_api_key" in written.out
        and "INVALID: 2 of 2 calls failed" in written.out
    )
    assert "innervoice: no reply was heard from the server: HTTP 401" in written.err
    assert json.loads((tmp_path / "r.json").read_text())[0]["invalid"] == "2 of 2 calls failed"


def test_calls_that_fail_beside_one_that_is_answered_make_the_exit_code_3(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(Script(chunks=((0.0, 0.1), (0.05, 0.1)), fault="dies", on_calls=(1,))) as (url, _):
        words = ["--audio", str(questions), "--num-warmups", "0", "--json", str(tmp_path / "r.json")]
        assert main(["bench", "realtime", "--url", url, "--callers", "2", "--num-turns", "1", *words]) == 3
    assert "INVALID: " in capsys.readouterr().out
    assert "1 of 2 calls failed" in json.loads((tmp_path / "r.json").read_text())[0]["invalid"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_prints_what_there_is_and_says_so(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """A signal sets the event that ends a run; the exit code is the signal's."""
    monkeypatch.setattr("innervoice.tools.cli.realtime.NOTE_EVERY_S", 0.5)
    script = Script(chunks=((0.0, 0.1), (0.05, 0.1)), answer_s=0.0, silence_s=0.1)
    with listening(script) as (url, _):
        timer = threading.Timer(3.0, os.kill, (os.getpid(), number))
        timer.start()
        words = ["--url", url, "--audio", str(questions), "--seconds", "600", "--think-s", "0"]
        assert main(["bench", "realtime", *words, "--report", str(tmp_path)]) == 128 + number
        timer.join()
    written = capsys.readouterr()
    assert re.search(r"^\d+ s: 1 caller, \d+ turns?, 0 failed$", written.err, re.MULTILINE)
    assert "the run was interrupted" in (tmp_path / "report.html").read_text()
    shown = " ".join(written.out.split())
    assert (
        "INVALID: " in shown
        and "the run was interrupted" in shown
        and "first sound after the question, ms" in shown
    )


@contextmanager
def open_port(answer: bytes) -> Iterator[int]:
    """A port whose server says something, whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join(5)


def refusal(url: str) -> str:
    async def work() -> str:
        try:
            await Wire.open(CallSettings(url, timeout_s=5.0), is_beta=False)
        except CallFailed as failed:
            return failed.kind
        return ""

    return asyncio.run(work())


def test_servers_that_are_none_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    assert refusal(f"ws://127.0.0.1:{closed}") == "connection refused"
    with open_port(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as port:
        assert refusal(f"ws://127.0.0.1:{port}") == "HTTP 404"
    with open_port(b"SSH-2.0-x\r\n") as port:
        assert refusal(f"ws://127.0.0.1:{port}") == "no WebSocket there"
    with open_port(b"no TLS here") as port:
        assert refusal(f"wss://127.0.0.1:{port}") == "no connection"


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed"
)
def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *words]
    subprocess.run(made, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    script = Script(chunks=((0.0, 0.1), (0.05, 0.1)), answer_s=0.0)
    with listening(script, tls) as (url, _):
        plain = [
            "bench",
            "realtime",
            "--url",
            url,
            "--num-turns",
            "1",
            "--turns",
            "manual",
            "--num-warmups",
            "0",
        ]
        plain += ["--audio", str(questions)]
        assert main(plain) == 2
        assert "failed: 1 x certificate refused" in capsys.readouterr().out
        assert main([*plain, "--ca-file", str(cert)]) in (0, 3), "3: the machine was too busy"
    assert "1 turn in 1 call, " in capsys.readouterr().out
