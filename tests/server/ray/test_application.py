"""The parts that Ray Serve calls, without a cluster; `make ray` runs them."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from paths import ENGINE, ROOT

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray.serve import autoscaling_policy
from ray.serve._private.common import StreamingHTTPRequest
from ray.serve.config import AutoscalingConfig
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
        ({"model": "m", "server": {"api_keys": "one-key"}}, "api_keys is a text"),
        ({"model": "m", "server": ["drain_s"]}, "server is .*a table of options"),
        ({"model": "m", "engine": "cpu"}, "engine is 'cpu': it must be a table of options"),
        ({"model": "m", "engine": {"devise": "cpu"}}, "devise"),
        ({"model": "m", "server": {"drain": 1}}, "drain"),
        ({"model": "m", "replicas": 0}, "replicas is 0: it must be a number from 1 on"),
        ({"model": "m", "replicas": "two"}, "replicas is 'two'"),
        ({"model": "m", "replicas": 1.5}, "replicas is 1.5"),
        ({"model": "m", "gpus": -1}, "gpus is -1: it must be a number from 0 on"),
        ({"model": "m", "gpus": "nan"}, "gpus is 'nan'"),
        ({"model": "m", "directories": -1}, "directories is -1"),
        ({"model": "m", "directory_bytes": 0}, "directory_bytes is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(arguments)


def test_numbers_may_be_text_as_the_command_line_gives_them() -> None:
    assert (
        build({"model": "m", "replicas": "3", "gpus": "0.5", "directories": "2", "engine": None}) is not None
    )


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


def test_the_manifest_for_kubernetes_has_a_configuration_that_is_one() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    [manifest] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    made = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert build(made.applications[0].args) is not None
    [group] = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    drains_s = made.applications[0].deployments[0].graceful_shutdown_timeout_s
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drains_s


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


def test_the_number_follows_a_load_that_stays_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays are those of the configuration, which Ray Serve applies around the policy."""
    now_s = [100.0]
    monkeypatch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda: now_s[0]))
    values = yaml.safe_load((ENGINE / "server" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    [deployment] = values["applications"][0]["deployments"]
    config = AutoscalingConfig(**deployment["autoscaling_config"])
    policy = autoscaling_policy._apply_autoscaling_config(ByLoad(running=10.0))
    number, state = 2, {}

    def after(seconds: float, running: int) -> int:
        nonlocal number, state
        now_s[0] += seconds
        report = ReplicaReport(1, 0.1, 5, 64, running)
        figures = {name: {"a": float(value)} for name, value in report.to_dict().items()}
        context = SimpleNamespace(
            aggregated_metrics=figures, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=8,
            target_num_replicas=number, current_num_replicas=number, total_num_requests=5, config=config, policy_state=state,
        )  # fmt: skip
        number, state = policy(context)
        return number

    assert [after(0, 50), after(9, 50), after(0.9, 15)] == [2, 2, 2], "it passed within upscale_delay_s"
    assert [after(0, 50), after(9, 50), after(1, 50)] == [2, 2, 5]
    assert [after(0, 9), after(299, 9), after(0, 45)] == [5, 5, 5], "a pause within downscale_delay_s"
    assert [after(0, 9), after(299, 9), after(1, 9)] == [5, 5, 1]


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
