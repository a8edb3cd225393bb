"""The line of an event log that says what a reply was asked for, so that it can be made again."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from innervoice.model.rows import with_rows_written
from innervoice.runtime.request import Request
from innervoice.runtime.snapshot import SessionSnapshot

Line = dict[str, Any]


def request_line(request: Request, model: str, history: SessionSnapshot | None = None) -> Line:
    """The line that an event log begins with.

    model: the digest that identifies the model. history: the history before a turn.
    """
    made: Line = {
        "kind": "request",
        "prompt_ids": list(request.prompt_ids),
        "schedule": request.program.schedule.to_dict(),
        "sampling": asdict(request.sampling),
        "reflection_caps": list(request.caps),
        "output_rate": request.output_rate,
        "output_format": request.output_format,
        "is_turn": request.session_id is not None,
        "model": model,
    }
    if request.fusion is not None:
        made["contexts"] = [list(ids) for ids in request.contexts]
        made["fusion"] = {
            "kind": request.fusion.kind,
            "alpha": request.fusion.alpha,
            "beta": request.fusion.beta,
            "prior": list(request.fusion.prior),
            "combine": None,
        }
    made = with_rows_written(made)
    return made | ({} if history is None else {"history": replace(history, model=model).to_dict()})
