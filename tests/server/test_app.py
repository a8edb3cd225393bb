"""The plain routes of a server over loopback: health, readiness, models, metrics, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_servers import KEY, RunningServer, running_server, wait_until

from innervoice import Engine, EngineDead
from innervoice.server.admission import Admission
from innervoice.server.errors import ApiError
from innervoice.server.options import ServerOptions
from innervoice.server.process import bind


@pytest.fixture(scope="module")
def server(small_engine: Engine) -> Iterator[RunningServer]:
    with running_server(small_engine) as made:
        yield made


def test_health_and_readiness(server: RunningServer) -> None:
    with server.client(key=None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        slots = [server.context.admission.hold() for _ in range(2)]
        full = client.get("/ready")
        assert full.status_code == 503
        assert full.json()["error"]["type"] == "rate_limit_error"
        assert int(full.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        for slot in slots:
            slot.release()
        assert client.get("/ready").status_code == 200


def test_the_model_is_listed(server: RunningServer) -> None:
    with server.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/tiny").json() == model
        assert {"id": "tiny", "object": "model", "owned_by": "innervoice"}.items() <= model.items()
        missing = client.get("/v1/models/others/model")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics"])
def test_a_key_is_asked_for(server: RunningServer, path: str) -> None:
    for key in (None, "wrong"):
        with server.client(key=key) as client:
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in answer.text
    with server.client(key=None) as client:
        assert client.get(path, headers={"api-key": KEY}).status_code == 200


def test_metrics_are_those_of_engine_and_server(server: RunningServer) -> None:
    metrics = server.context.metrics
    metrics.session_started("ga")
    metrics.session_ended("ga", "client")
    metrics.commit_to_audio(0.3)
    with server.client() as client:
        text = client.get("/metrics").text
    families = {f"{family.name} {family.type}": family for family in text_string_to_metric_families(text)}
    assert "innervoice_ttfa_seconds histogram" in families
    (open_now,) = families["innervoice_server_sessions gauge"].samples
    assert (open_now.labels, open_now.value) == ({"dialect": "ga"}, 0)
    ended = [one for one in families["innervoice_server_sessions counter"].samples if one.value == 1]
    assert (ended[0].name, ended[0].labels) == ("innervoice_server_sessions_total", {"end": "client"})
    assert text.count("# TYPE innervoice_server_sessions_total counter") == 1
    buckets = families["innervoice_server_commit_to_audio_seconds histogram"].samples
    assert [one.value for one in buckets if one.labels.get("le") in ("0.2", "0.3")] == [0, 1]


def test_foreign_pages_and_names_are_refused(server: RunningServer) -> None:
    with server.client() as client:
        foreign = client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "invalid_origin")
        rebound = client.get("/v1/models", headers={"Host": "evil.example"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "invalid_host")
        page = client.get("/v1/models", headers={"Origin": "http://localhost:3000"})
        assert page.headers["access-control-allow-origin"] == "http://localhost:3000"
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, status in (("http://localhost:3000", 200), ("https://evil.example", 400)):
            preflight = client.options("/v1/models", headers={"Origin": origin, **wanted})
            assert preflight.status_code == status


def test_a_dead_engine_is_no_healthy_server(small_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        is_busy = True
        ended: tuple[int, ApiError] | None = None

        async def end(self, code: int, error: ApiError) -> None:
            self.ended = (code, error)
            server.context.live.discard(self)

    def dead() -> None:
        raise EngineDead("the device is lost")

    with running_server(small_engine) as server, server.client() as client:
        connection = Connection()
        server.context.live.add(connection)
        monkeypatch.setattr(small_engine, "check_health", dead)
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "the device is lost" in answer.json()["error"]["message"]
        wait_until(lambda: connection.ended is not None)
        assert connection.ended is not None
        assert (connection.ended[0], connection.ended[1].code) == (1011, "server_error")


def test_a_server_drains_before_it_ends(small_engine: Engine) -> None:
    class Connection:
        is_busy = True
        ended: int | None = None

        async def end(self, code: int, error: ApiError) -> None:
            self.ended = code
            server.context.live.discard(self)

    with running_server(small_engine, drain_s=20.0) as server, server.client() as client:
        connection = Connection()
        server.context.live.add(connection)
        server.loop.call_soon_threadsafe(server.server.stop)
        wait_until(lambda: server.context.admission.is_draining)
        assert client.get("/health").status_code == 200
        refused = client.get("/ready")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_draining"
        assert connection.ended is None
        connection.is_busy = False
        wait_until(lambda: server.server.should_exit)
        assert connection.ended == 1001


def test_slots_are_given_back_once() -> None:
    admission = Admission(1)
    slot = admission.hold()
    with pytest.raises(ApiError) as caught:
        admission.hold()
    assert (caught.value.status, caught.value.code) == (429, "session_limit_reached")
    beyond = admission.hold(or_beyond=True)
    beyond.release()
    assert not admission.has_room
    slot.release()
    slot.release()
    assert admission.num_held == 0
    admission.drain()
    with pytest.raises(ApiError) as caught:
        admission.hold(or_beyond=True)
    assert caught.value.status == 503


def test_an_address_that_is_taken_is_one_sentence() -> None:
    options = ServerOptions(port=0)
    with bind(options) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be listened on .*choose another"):
            bind(ServerOptions(port=port))
    with pytest.raises(OSError, match="choose another host"):
        bind(ServerOptions(host="no such host"))


def test_routes_and_bodies_that_there_are_none_of(server: RunningServer) -> None:
    with server.client() as client:
        for method, path, status in (("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404)):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["code"]
