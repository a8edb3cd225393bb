"""The server on Ray Serve: replicas with an engine each, behind its proxies (the extra `ray`).

`serve run innervoice.server.ray:build` starts it; docs/cluster.md has the rest.

application.py  make_application: what Ray Serve runs
autoscaling.py  the number of replicas, as Ray Serve asks for it
command.py      serve_replicas: replicas from the command line
ingress.py      Ingress: the ASGI application of a replica, which passes requests on
relay.py        Relay: a request that another replica answers
replica.py      Replica: an engine and a server, as an actor of Ray Serve
router.py       FirstAudioRouter: which replica gets a request
session_hub.py  SessionHub: the directories of sessions, as actors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: Mapping[str, Any]) -> Application:
    """Make the application, as `application.make_application` does; Ray's proxies import this package without torch."""
    from innervoice.server.ray.application import make_application

    return make_application(args)
