"""innervoice generate --best-of: the best of several replies to one question, by its rated empathy."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import innervoice
from innervoice.api.event_log import EventLog
from innervoice.files import sound_format
from innervoice.runtime.record import Line
from innervoice.tools.cli.answers import can_sound, loaded, say, write_reply
from innervoice.tools.cli.outputs import ReplyFiles, staged
from innervoice.tools.packaged import logged
from innervoice.tools.raters import ZERO_SHOT_LABEL, Rater
from innervoice.types import Prompt, Reply, Sampling, Text

MEAN = "mean"


def answer_best_of(
    load: dict[str, Any],
    prompt: Prompt,
    request: dict[str, Any],
    outputs: ReplyFiles,
    num: int,
    by: str,
    evaluator: str | None,
    *,
    must_sound: bool = False,
) -> None:
    """Draw `num` replies at seeds in a row, rate them, and write the outputs of the best.

    by: the name of a score, or "mean". evaluator: a checkpoint with heads, None: the model itself judges zero-shot.
    load, must_sound: as for `answer`. Raises ValueError for a score that is not there.
    """
    with ExitStack() as stack:
        parts = stack.enter_context(staged(outputs))
        engine = stack.enter_context(loaded(prompt, request, **load))
        if can_sound(engine, request["schedule"]):
            sound_format(outputs.audio).check(engine.parts.requests.sample_rate)
        rater = Rater.over(engine)
        if evaluator is not None:
            own: dict[str, Any] = {name: load[name] for name in ("device", "dtype") if name in load}
            own["model"] = evaluator
            rater = stack.enter_context(Rater.load(own, zero_shot=False))
        if by not in (MEAN, *rater.names):
            raise ValueError(f"--by is {by!r}: use {', '.join((MEAN, *rater.names))}")

        with engine.trace(parts.trace) if parts.trace else nullcontext():
            replies = _drawn(engine, prompt, request, load, num)
        best = _rated(rater, prompt, [reply for reply, _ in replies], by)
        reply, lines = replies[best]
        say(reply.transcript)
        written = write_reply(reply, lines, outputs, parts, must_sound)
    if written:
        say("wrote " + ", ".join(map(str, written.values())))


def _drawn(
    engine: innervoice.Engine, prompt: Prompt, request: dict[str, Any], load: dict[str, Any], num: int
) -> list[tuple[Reply, list[Line]]]:
    """The replies at seeds in a row, together, each with the lines of its event log."""
    sampling: Sampling = request["sampling"]
    first = secrets.randbits(62) if sampling.seed is None else sampling.seed
    seeds = [(first + i) % 2**64 for i in range(num)]
    asked = [
        engine.stream(prompt, **{"realtime": False, **request, "sampling": replace(sampling, seed=seed)})
        for seed in seeds
    ]
    made = []
    for stream in asked:
        log, lines = EventLog(), [{**(stream.record or {}), "engine": logged(load)}]
        for event in stream:
            lines += log.feed(event)
        made.append((stream.reply(), lines))
    return made


def _rated(rater: Rater, prompt: Prompt, replies: list[Reply], by: str) -> int:
    """The number of the reply with the highest score, all of which are printed."""
    if not rater.is_trained:
        say(ZERO_SHOT_LABEL)
    found = list(rater.rate([(prompt, _content(reply, rater.hears)) for reply in replies]))
    scores = [one.mean if by == MEAN else one.scores[by] for one in found]
    best = max(range(len(scores)), key=scores.__getitem__)
    for number, (reply, score) in enumerate(zip(replies, scores, strict=True)):
        mark = "*" if number == best else " "
        say(f"{mark} seed {reply.usage.sampling.seed}: {by} {score:.3f}")
    return best


def _content(reply: Reply, hears: bool) -> Prompt:
    """A reply as it is rated: its sound where that is heard, or else its transcript."""
    if hears and len(reply.audio.samples):
        return reply.audio.samples, reply.audio.rate
    if not reply.transcript.strip():
        raise ValueError(
            "a reply has neither sound that is heard nor words, so it cannot be rated: draw longer ones"
        )
    return Text(reply.transcript)
