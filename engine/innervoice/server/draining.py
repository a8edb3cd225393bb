"""The end of a server's connections: those that are idle at once where their sessions go on elsewhere, others played out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from innervoice.server.admission import draining
from innervoice.server.context import LiveConnection, ServerContext
from innervoice.server.errors import ApiError

POLL_S = 0.05
END_S = 1.0  # that connections have to take their last events
log = logging.getLogger("innervoice")


async def drain(context: ServerContext) -> None:
    """Admit no more sessions, let running replies be played for `drain_s` at most, and close with 1001."""
    context.admission.drain()
    loop = asyncio.get_running_loop()
    until_s = loop.time() + context.options.drain_s
    while any(one.is_busy for one in context.live) and loop.time() < until_s:
        if context.store is not None:
            await _end_draining(context, lambda one: not one.is_busy)
        await asyncio.sleep(POLL_S)
    await _end_draining(context, lambda one: True)


async def end_all(
    context: ServerContext,
    code: int,
    error: ApiError,
    wanted: Callable[[LiveConnection], bool] = lambda one: True,
) -> None:
    """End the connections that are wanted; one that fails to end does not keep the others."""
    ends = [connection.end(code, error) for connection in list(context.live) if wanted(connection)]
    for result in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(result, BaseException):
            log.error("a connection could not be ended: %r", result)


async def _end_draining(context: ServerContext, wanted: Callable[[LiveConnection], bool]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(end_all(context, 1001, draining(), wanted), END_S)
