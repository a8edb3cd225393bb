"""make_application: the application that Ray Serve runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from innervoice.api.options import EngineOptions
from innervoice.server.options import ServerOptions
from innervoice.server.ray.replica import Replica, ReplicaSettings

DEPLOYMENT = "Replica"
ARGUMENTS = (
    "model",
    "served_name",
    "name",
    "replicas",
    "gpus",
    "engine",
    "server",
    "directories",
    "directory_bytes",
)
REPORT_S = 0.5
MAX_REQUESTS = 100_000  # of a replica: its own admission refuses before that
ROUTER = "innervoice.server.ray.router.FirstAudioRouter"


def make_application(args: Mapping[str, Any]) -> Application:
    """Make the application from the arguments of `serve run` or of a configuration file.

    model: directory or hub id. served_name: for clients, by default that of the directory. name: of the
    application, by which its directories of sessions are found. replicas: their number, gpus: of each, where the
    configuration does not set them. engine: options of `EngineOptions`. server: of
    `ServerOptions`; keys come from INNERVOICE_API_KEY by default. directories: processes that keep sessions between
    turns, directory_bytes: the most that each keeps. Raises ValueError, which names the argument.
    """
    unknown = sorted(set(args) - set(ARGUMENTS))
    if unknown:
        raise ValueError(f"there is no argument {unknown[0]}: use {', '.join(ARGUMENTS)}")
    if not args.get("model"):
        raise ValueError("model is missing: give a directory or a hub id, as in model=PATH")
    server: dict[str, Any] = {"api_keys": os.environ.get("INNERVOICE_API_KEY", "").split()}
    server |= read_table(args, "server")
    engine = read_table(args, "engine")
    if isinstance(server["api_keys"], str):
        raise ValueError("api_keys is a text: it must be a list of keys, even of one")
    server["api_keys"] = tuple(server["api_keys"] or ())
    try:
        EngineOptions().changed(**engine)
        options = ServerOptions(**server)
    except TypeError as error:  # of an unknown name
        raise ValueError(str(error)) from None
    hub = {
        "name": str(args.get("name") or "innervoice"),
        "num_shards": int(read_number(args, "directories", 1, 1)),
        "max_bytes": int(read_number(args, "directory_bytes", 2**30, 1)),
    }
    settings = ReplicaSettings(
        model=str(args["model"]),
        name=str(args.get("served_name") or Path(str(args["model"])).name),
        engine=engine,
        server=server,
        hub=hub,
    )
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=int(read_number(args, "replicas", 1, 1)),
        max_ongoing_requests=MAX_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=options.drain_s + 10.0,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": 1, "num_gpus": read_number(args, "gpus", 0, 0)},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"hub": hub},
            request_routing_stats_period_s=REPORT_S,
        ),
    )
    application: Application = deployment(serve.ingress()(Replica)).bind(settings)
    return application


def read_table(args: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read options by name, an empty table where there are none. Raises ValueError for another thing."""
    given = args.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}: it must be a table of options, as in {name}: {{NAME: VALUE}}")
    return dict(given)


def read_number(args: Mapping[str, Any], name: str, default: float, least: float) -> float:
    """Read a number, which `serve run` gives as text; a count is whole. Raises ValueError for another thing."""
    given = args.get(name)
    if given is None:
        return default
    try:
        value = float(given) if name == "gpus" else int(str(given))
    except (TypeError, ValueError):
        value = -math.inf
    if not least <= value < math.inf:
        raise ValueError(f"{name} is {given!r}: it must be a number from {least:g} on")
    return value
