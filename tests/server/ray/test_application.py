"""The parts that Ray Serve calls, without a cluster; `make ray` runs them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from paths import ENGINE

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray.serve._private.common import StreamingHTTPRequest
from ray.serve.schema import ServeDeploySchema

from innervoice.server.cluster.report import ReplicaReport
from innervoice.server.ray import build
from innervoice.server.ray.autoscaling import ByLoad, reports_of
from innervoice.server.ray.router import resume_token

pytestmark = pytest.mark.slow


@dataclass
class Asked:
    """A request as a router has it."""

    query: bytes
    is_http: bool = True
    args: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        scope = {"type": "websocket", "path": "/v1/realtime", "query_string": self.query, "headers": []}
        self.args = [pickle.dumps(StreamingHTTPRequest(scope, proxy_actor_name="proxy"))]
        self.metadata = SimpleNamespace(is_http_request=self.is_http, session_id="")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"innervoice=1&resume=resume_12&last_event=4", "resume_12"),
        (b"resume=a%2Fb", "a/b"),
        (b"resume=", None),
        (b"unresume=1", None),
        (b"", None),
    ],
)
def test_the_resume_token_of_a_request(query: bytes, expected: str | None) -> None:
    assert resume_token(Asked(query)) == expected  # type: ignore[arg-type]


def test_calls_between_replicas_have_no_token() -> None:
    assert resume_token(Asked(b"resume=1", is_http=False)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "model is missing"),
        ({"model": "m", "gpu": 1}, "no argument gpu"),
        ({"model": "m", "server": {"drain_s": -1}}, "drain_s"),
        ({"model": "m", "server": {"api_keys": ["two words"]}}, "API key"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(arguments)


def test_the_configuration_is_one_and_its_arguments_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERVOICE_API_KEY", "one two")
    values = yaml.safe_load((ENGINE / "server" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    made = ServeDeploySchema.model_validate(values)
    [application] = made.applications
    assert application.import_path == "innervoice.server.ray:build"
    assert build(application.args) is not None
    [deployment] = application.deployments
    policy = deployment.autoscaling_config["policy"]
    assert policy["policy_function"] == f"{ByLoad.__module__}:{ByLoad.__name__}"
    ByLoad(**policy["policy_kwargs"])


def test_the_policy_reads_the_reports_of_all_replicas() -> None:
    reports = {"a": ReplicaReport(4, 0.25, 3, 8, 2), "b": ReplicaReport(9, 0.5, 8, 8, 7, is_draining=True)}
    figures = {
        name: {replica: float(values.to_dict()[name]) for replica, values in reports.items()}
        for name in reports["a"].to_dict()
    }
    assert sorted(reports_of(figures), key=lambda one: one.number) == list(reports.values())
    del figures["num_running"]["a"]
    assert reports_of(figures) == [reports["b"]]
    assert reports_of({}) == []


@pytest.mark.parametrize(("running", "expected"), [(0.0, 1), (40.0, 4), (900.0, 6)])
def test_the_policy_stays_within_the_limits(running: float, expected: int) -> None:
    report = ReplicaReport(1, 0.1, 5, 64, round(running))
    figures = {name: {"a": float(value)} for name, value in report.to_dict().items()}
    context = SimpleNamespace(
        aggregated_metrics=figures, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=6, target_num_replicas=2
    )  # fmt: skip
    assert ByLoad(running=10.0)(context) == (expected, {})
    context.aggregated_metrics = {}
    assert ByLoad(running=10.0)(context) == (2, {}), "nothing is known: it stays"
