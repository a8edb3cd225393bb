"""serve_replicas: replicas on this machine, or on the cluster that RAY_ADDRESS names, until a signal ends them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
CONNECT_S = 5.0


def serve_replicas(
    model: str, name: str, engine: Mapping[str, Any], options: ServerOptions, replicas: int
) -> None:
    """Start replicas and serve until SIGINT or SIGTERM; running replies are played out then.

    A GPU is one replica's, where there is one and the device is not the CPU. Raises ConnectionError when the cluster
    of RAY_ADDRESS does not answer.
    """
    address = os.environ.get(ADDRESS)
    if address:
        check_address(address)
    own = {} if address else {"num_cpus": max(replicas, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(address=address or "local", logging_level="warning", **own)
    try:
        with _until_a_signal():
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
                f"{name} is served by {replicas} replicas at {where}/v1; to talk to it open {where}/",
                flush=True,
            )
            while True:
                signal.pause()
    finally:
        end(is_own=not address)


def end(*, is_own: bool) -> None:
    """End the application, whose replicas drain, and Ray itself if it was started for it."""
    serve.delete(NAME)
    SessionHub(NAME).end()
    if is_own:
        serve.shutdown()
    ray.shutdown()


class _Ended(BaseException):
    """A signal came."""


@contextmanager
def _until_a_signal() -> Iterator[None]:
    """End the block at SIGINT or SIGTERM, wherever it is; Ray's own handlers would end the process with a failure."""

    def stop(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except _Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_address(address: str) -> None:
    """Try to reach the host and port of a cluster; Ray itself would wait for minutes. Raises ConnectionError."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return  # "auto", "local", or a URL, which Ray checks
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"{ADDRESS} is {address}, where no Ray cluster answers ({error}): start one by `ray start --head`, or "
            f"unset {ADDRESS}"
        ) from None


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
