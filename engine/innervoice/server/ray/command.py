"""serve_replicas: replicas on this machine, or on the cluster that RAY_ADDRESS names, until a signal ends them."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from typing import Any

import ray
import torch
from ray import serve
from ray.exceptions import AuthenticationError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from innervoice.server.options import ServerOptions
from innervoice.server.process import SIGNALS
from innervoice.server.ray.application import make_application
from innervoice.server.ray.session_hub import SessionHub

ADDRESS = "RAY_ADDRESS"
NAME = "innervoice"
CONNECT_S = 5.0
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Capacity): (.+)")


def serve_replicas(
    model: str, name: str, engine: Mapping[str, Any], options: ServerOptions, replicas: int
) -> None:
    """Start replicas and serve until SIGINT or SIGTERM; running replies are played out then.

    A GPU is one replica's, where there is one and the device is not the CPU. All that was started here ends with it,
    also when the signal comes while it starts. Raises ConnectionError when the cluster of RAY_ADDRESS does not
    answer, ValueError when another `innervoice serve` or another port is served there, when this machine has too few
    GPUs, and when no replica could be started.
    """
    address = os.environ.get(ADDRESS) or None
    server = {one.name: getattr(options, one.name) for one in fields(options) if one.name != "secret"}
    arguments: dict[str, Any] = {
        "model": model, "served_name": name, "name": NAME, "replicas": replicas, "engine": engine, "server": server
    }  # fmt: skip
    make_application(arguments)  # bad ones are refused before anything is started
    http = HTTPOptions(
        host=options.host,
        port=options.port,
        ssl_certfile=_path(options.ssl_certfile),
        ssl_keyfile=_path(options.ssl_keyfile),
    )
    with until_a_signal() as signals, ExitStack() as ends:
        ends.callback(ray.shutdown)
        connect(address, replicas, signals.take)
        arguments["gpus"] = gpus_of_each(address, engine.get("device"), replicas)
        if has_to_start(http):
            ends.callback(serve.shutdown)
        ends.callback(SessionHub(NAME).end)
        ends.callback(delete)
        run(arguments, http)
        where = f"{options.scheme}://{options.host}:{options.port}"
        print(
            f"{name} is served by {replicas} replicas at {where}/v1; to talk to it open {where}/",
            flush=True,
        )
        signals.wait()


def connect(address: str | None, replicas: int, take_signals: Callable[[], None]) -> None:
    """Connect to a cluster, None: start Ray on this machine. Raises ConnectionError.

    take_signals: sets the handlers that `ray.init` has replaced by its own.
    """
    if address is None:
        cores = max(replicas, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="warning")
        take_signals()
        return
    check_address(address)
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGTERM]
    )  # while it connects, Ray aborts the process at one
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, AuthenticationError) as error:
        raise ConnectionError(
            f"{ADDRESS} is {address}, where Ray did not let this process in ({str(error).splitlines()[0]}): give the "
            "address of a running head, and if `ray start` said that it wants a token, set RAY_AUTH_MODE=token here too"
        ) from error
    finally:
        take_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def gpus_of_each(address: str | None, device: str | None, replicas: int) -> int:
    """Decide on the GPUs of each replica: one, where there are any and the device is not the CPU.

    A cluster that was joined may get more machines, so that too few are a warning there. Raises ValueError for this machine.
    """
    if device == "cpu":
        return 0
    num = round(ray.cluster_resources().get("GPU", 0)) if address else torch.cuda.device_count()
    if num >= replicas or (num == 0 and device in (None, "auto")):
        return min(num, 1)
    found = (
        f"{replicas} replicas need a GPU each, and {'the cluster' if address else 'this machine'} has {num}"
    )
    if not address:
        raise ValueError(
            f"{found}: give --replicas {num}, or --device cpu" if num else f"{found}: give --device cpu"
        )
    print(f"innervoice: WARNING: {found}: it serves once it has more", file=sys.stderr, flush=True)
    return 1


def run(arguments: Mapping[str, Any], http: HTTPOptions) -> None:
    """Run the application, and wait until it serves.

    Raises OSError where no proxy can listen, ValueError with what a replica said that did not start.
    """
    try:
        serve.start(http_options=http)
    except RuntimeError as error:
        raise OSError(
            f"no proxy could be started: {last_error([str(error)])}: choose another host or port"
        ) from error
    try:
        serve.run(make_application(arguments), name=NAME, route_prefix="/")
    except RuntimeError as error:
        found = serve.status().applications.get(NAME)
        said = [] if found is None else [one.message for one in found.deployments.values()]
        raise ValueError(f"no replica could be started: {last_error([str(error), *said])}") from error


def last_error(messages: Sequence[str]) -> str:
    """Find the line of the last exception in messages with tracebacks, or else the last line."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [found[1] for line in lines if (found := _ERROR.match(line))]
    return [*lines[-1:], *errors][-1].rstrip(".")


def has_to_start(http: HTTPOptions) -> bool:
    """Check what Ray Serve does on the cluster already -> whether it has to be started.

    Raises ValueError when our name is taken, or when its proxies listen elsewhere than asked.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return True
    if NAME in serve.status().applications:
        raise ValueError(
            f"the cluster of {ADDRESS} has an application {NAME} already: end the other `innervoice serve`, or what "
            "is left of it by `serve shutdown`"
        )
    there = client.http_config
    if (there.host, there.port) != (http.host, http.port):
        raise ValueError(
            f"the proxies of the cluster of {ADDRESS} listen on {there.host}:{there.port} already: give --host "
            f"{there.host} --port {there.port}"
        )
    return False


def delete() -> None:
    """End the application, if there is one; its replicas drain."""
    with suppress(RayServeException):  # Ray Serve was not started
        serve.delete(NAME)


class _Ended(BaseException):
    """A signal came."""


class _Signals:
    """SIGINT and SIGTERM, which end a block wherever it is, by an exception."""

    def __init__(self) -> None:
        self.came = False

    def take(self) -> None:
        """Set the handlers, or set them once more behind others."""
        for number in SIGNALS:
            signal.signal(number, self._stop)

    def wait(self) -> None:
        """Wait for one, or for none if one has come, whose exception somebody has caught."""
        while not self.came:
            signal.pause()

    def _stop(self, *_: object) -> None:
        self.came = True
        raise _Ended


@contextmanager
def until_a_signal() -> Iterator[_Signals]:
    """End the block at SIGINT or SIGTERM, also where native code makes another exception of it, or where `ray.init` has
    handlers of its own, which raise SystemExit.
    """
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    signals = _Signals()
    signals.take()
    try:
        yield signals
    except SystemExit:
        pass
    except BaseException:
        if not signals.came:
            raise
    finally:
        for number, handler in before:
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
