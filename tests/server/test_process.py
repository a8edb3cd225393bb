"""The process of a server: its command line, TLS, and the end at SIGTERM while a reply runs."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from paths import ROOT
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from innervoice.server.options import ServerOptions
from innervoice.tools.cli.main import main
from innervoice.tools.cli.serve import KEY_VARIABLE, read_keys, warn

SPEECH = {
    "messages": [{"role": "user", "content": "How are you?"}],
    "modalities": ["text", "audio"],
    "audio": {"voice": "v", "format": "pcm16"},
    "stream": True,
    "temperature": 0,
    "seed": 3,
}


@contextmanager
def child(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own -> the process and the address that it prints."""
    paths = os.pathsep.join(path for path in sys.path if path)
    env = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-m", "innervoice.tools.cli.main", "serve", "--port", "0", *words]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"[\w.-]+ is served at (https?://127\.0\.0\.1:\d+)/v1; to talk to it open \1/ in a browser\n",
            line,
        )
        assert found is not None, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        log.seek(0)
        assert "Traceback" not in (said := log.read()), said
        log.close()


class Listening(threading.Thread):
    """Reads a streamed answer to its end."""

    def __init__(self, base: str, num_tokens: int) -> None:
        super().__init__()
        self.base = base
        self.body = SPEECH | {"max_completion_tokens": num_tokens}
        self.has_begun = threading.Event()
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        with (
            suppress(httpx2.RemoteProtocolError),  # the server ended at once
            httpx2.Client(timeout=60) as client,
            client.stream("POST", f"{self.base}/v1/chat/completions", json=self.body) as answer,
        ):
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)
                    self.has_begun.set()

    @property
    def last(self) -> dict[str, Any]:
        """The last piece of JSON."""
        last: dict[str, Any] = json.loads([x for x in self.lines if x.startswith("data: {")][-1][6:])
        return last


@pytest.mark.slow
def test_a_reply_that_runs_at_sigterm_is_heard_to_its_end() -> None:
    with child("--drain-s", "60", "--schedule", "stitch_s") as (process, base):
        listening = Listening(base, 600)
        assert listening.has_begun.wait(30)
        process.send_signal(signal.SIGTERM)
        with httpx2.Client(base_url=base, timeout=30) as client:
            until_s = time.monotonic() + 5
            while client.get("/ready").status_code == 200:
                assert time.monotonic() < until_s
            assert client.get("/health").status_code == 200
            refused = client.post("/v1/chat/completions", json=SPEECH)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
        assert listening.is_alive(), "the reply is long enough to run while others are refused"
        listening.join(60)
        assert listening.lines[-1] == "data: [DONE]"
        assert listening.last["choices"][0]["finish_reason"] in ("stop", "length")
        assert process.wait(5) == 0


@pytest.mark.slow
def test_the_drain_ends_in_time_and_a_second_signal_ends_it_at_once(tiny_dir: Path) -> None:
    model = ("--model", str(tiny_dir))  # of random weights, which talks on
    with child(*model, "--drain-s", "1") as (process, base):
        listening = Listening(base, 2000)
        assert listening.has_begun.wait(30)
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began_s < 1 + 2 + 2
        listening.join(10)
        assert listening.last["error"]["code"] == "server_draining"
    with child(*model, "--drain-s", "600") as (process, base):
        listening = Listening(base, 2000)
        assert listening.has_begun.wait(30)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        began_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert time.monotonic() - began_s < 4


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed"
)
def test_tls_and_a_key_of_the_environment(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
    ]
    subprocess.run(
        [*made, "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    words = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(key))
    with child(*words, **{KEY_VARIABLE: "sk-one"}) as (_, base):
        assert base.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx2.Client(base_url=base, verify=context, timeout=30) as client:
            assert client.get("/v1/models").status_code == 401
            headers = {"Authorization": "Bearer sk-one"}
            assert client.get("/v1/models", headers=headers).json()["data"][0]["id"] == "innervoice-mini"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "port is 70000: it must be 0 to 65535"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--schedule", "none such"], "unknown schedule"),
        (["--ssl-certfile", "no.pem"], "ssl_certfile no.pem is no file"),
        (["--allow-origin", "here"], "allow_origins has 'here'"),
        (["--api-key", "@no.txt"], "there is no file of keys no.txt"),
        (["--host", "256.1.1.1", "--api-key", "k"], "256.1.1.1:8000 cannot be listened on"),
        (["--max-sessions", "0"], "max_sessions is 0"),
    ],
)
def test_a_refusal_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    port = [] if "--port" in words or "--host" in words else ["--port", "0"]
    assert main(["serve", *port, *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_keys_come_from_options_files_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-env")
    file = tmp_path / "keys"
    file.write_text("sk-a\n\n sk-b \n")
    assert read_keys(None) == ("sk-env",)
    assert read_keys([f"@{file}", "sk-c"]) == ("sk-a", "sk-b", "sk-c")


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("192.168.1.2", (), True),
        ("0.0.0.0", ("sk",), False),
        ("127.0.0.1", (), False),
        ("localhost", (), False),
        ("::1", (), False),
    ],
)
def test_a_server_that_everybody_may_use_says_so(
    host: str, keys: tuple[str, ...], warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn(ServerOptions(host=host, api_keys=keys))
    assert ("WARNING" in capsys.readouterr().err) is warns


@pytest.mark.slow
def test_a_conversation_is_closed_once_its_reply_was_played() -> None:
    with child("--drain-s", "60", "--schedule", "interleaved") as (process, base):
        address = base.replace("http", "ws") + "/v1/realtime"
        with connect(address, max_size=None) as connection:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
            connection.send(json.dumps({"type": "conversation.item.create", "item": item}))
            connection.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 60}}))
            kinds, sound_s, began_s = [], 0.0, 0.0
            for message in connection:
                event = json.loads(message)
                kinds.append(event["type"])
                if event["type"] != "response.output_audio.delta":
                    continue
                if not sound_s:
                    began_s = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    with pytest.raises(InvalidStatus) as refused:
                        wait_for_refusal(address)
                    assert refused.value.response.status_code == 503
                sound_s += len(base64.b64decode(event["delta"])) / 48000
        assert connection.close_code == 1001
        assert event["error"]["code"] == "server_draining"
        assert kinds.count("response.done") == 1
        assert sound_s > 0.3  # the reply is drawn at random: some are short
        assert time.monotonic() - began_s > sound_s - 0.2, "what was sent is also played"
        assert process.wait(5) == 0


def wait_for_refusal(address: str) -> None:
    """Connect until the server refuses. Raises InvalidStatus."""
    for _ in range(100):
        with connect(address):
            time.sleep(0.02)
