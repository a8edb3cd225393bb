"""serve_replicas: replicas on this machine, or on the cluster that RAY_ADDRESS names, until a signal ends them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions

from innervoice.server.options import ServerOptions
from innervoice.server.process import SIGNALS
from innervoice.server.ray.application import make_application
from innervoice.server.ray.session_hub import SessionHub

ADDRESS = "RAY_ADDRESS"
NAME = "innervoice"


def serve_replicas(
    model: str, name: str, engine: Mapping[str, Any], options: ServerOptions, replicas: int
) -> None:
    """Start replicas and serve until SIGINT or SIGTERM; running replies are played out then.

    A GPU is one replica's, where there is one and the device is not the CPU. Raises ConnectionError when the cluster
    of RAY_ADDRESS does not answer.
    """
    address = os.environ.get(ADDRESS)
    own = {} if address else {"num_cpus": max(replicas, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(address=address, logging_level="warning", **own)
    try:
        serve.start(
            http_options=HTTPOptions(
                host=options.host,
                port=options.port,
                ssl_certfile=_path(options.ssl_certfile),
                ssl_keyfile=_path(options.ssl_keyfile),
            )
        )
        gpus = 1 if torch.cuda.is_available() and engine.get("device") != "cpu" else 0
        server = {one.name: getattr(options, one.name) for one in fields(options) if one.name != "secret"}
        arguments = {
            "model": model, "served_name": name, "name": NAME, "replicas": replicas, "gpus": gpus, "engine": engine,
            "server": server,
        }  # fmt: skip
        serve.run(make_application(arguments), name=NAME, route_prefix="/")
        where = f"{options.scheme}://{options.host}:{options.port}"
        print(
            f"{name} is served by {replicas} replicas at {where}/v1; to talk to it open {where}/", flush=True
        )
        _wait()
    finally:
        end(is_own=not address)


def end(*, is_own: bool) -> None:
    """End the application, whose replicas drain, and Ray itself if it was started for it."""
    serve.delete(NAME)
    SessionHub(NAME).end()
    if is_own:
        serve.shutdown()
    ray.shutdown()


def _wait() -> None:
    is_over = threading.Event()
    before = {number: signal.signal(number, lambda *_: is_over.set()) for number in SIGNALS}
    try:
        while not is_over.wait(1.0):  # in parts: a wait without an end hears no signal
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
