"""Checks recorded events with the parsers of the Python clients that are installed: validate.py NAME, lines on stdin."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from common import mode, show

Check = Callable[[dict[str, Any]], None]


def by_openai() -> Check:
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
    return lambda event: adapter.validate_python(event, strict=True)


def by_openai_beta() -> Check:
    from openai.types.beta.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
    return lambda event: adapter.validate_python(event, strict=True)


def by_openai_agents() -> Check:
    from agents.realtime.openai_realtime import get_server_event_type_adapter

    adapter = get_server_event_type_adapter()
    return lambda event: adapter.validate_python(event)


def by_pipecat() -> Check:
    from pipecat.services.openai.realtime.events import parse_server_event

    def check(event: dict[str, Any]) -> None:
        if parse_server_event(json.dumps(event)) is None:
            raise ValueError("pipecat knows no such event")

    return check


CHECKS = {
    "openai": by_openai,
    "beta": by_openai_beta,
    "openai-agents": by_openai_agents,
    "pipecat": by_pipecat,
}

check = CHECKS[mode()]()
taken = Counter[str]()
for line in sys.stdin:
    event = json.loads(line)
    try:
        check(event)
    except Exception as error:
        show("refused", type=event["type"], error=str(error)[:2000], event=event)
    else:
        taken[event["type"]] += 1
show("taken", types=taken)
