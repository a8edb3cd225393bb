"""The schedule's rules read straight from the page, as a generator over scripted logits: no tables, no states. For tests only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from random_schedules import SIZE, VOCAB

from innervoice.schedule import replay

INFINITY = 10**9


def _matched(drawn: list[int], tag: list[int]) -> int:
    """How many of the last ids are a beginning of the tag."""
    return max((n for n in range(1, min(len(drawn), len(tag)) + 1) if drawn[-n:] == tag[:n]), default=0)


class Naive:
    """Runs a guided schedule (JSON form) greedily; `vocab` as in `replay`."""

    def __init__(
        self,
        schedule: dict[str, Any],
        vocab: dict[str, Any],
        logits: np.ndarray,
        limit: int,
        caps: Sequence[int],
        feeds: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.feeds = {name: list(ids) for name, ids in (feeds or {}).items()}
        self.closed: set[str] = set()
        self.listens = self.heard = False
        self.schedule, self.vocab, self.logits, self.limit, self.caps = schedule, vocab, logits, limit, caps
        self.text_done = self.reflection_done = self.over = self.offer = False
        self.num_reflections = 0
        self.out: list[tuple[int, str]] = []

    def run(self) -> tuple[list[int], list[str]]:
        for segment in self._segments():
            self._run_segment(segment)
            if self._full():
                break
        out = self.out[: self.limit]
        return [token for token, _ in out], [kind for _, kind in out]

    def _segments(self) -> Iterator[Any]:
        self.listens = bool(self.schedule.get("listen"))
        while self.listens:
            for segment in self.schedule["listen"]:
                yield segment
                if self.heard:
                    break
            self.listens = not self.heard
        yield from self.schedule.get("prologue", [])
        first = self.schedule.get("first") or []
        for segment, budget in zip(self.schedule["cycle"], first, strict=False):
            if budget is None:
                yield segment
            else:
                yield segment | {"budget": budget} if isinstance(segment, dict) else [segment[0], budget]
        while True:
            yield from self.schedule["cycle"]

    def _full(self) -> bool:
        return self.over or len(self.out) >= self.limit

    def _emit(self, token: int, kind: str) -> None:
        self.out.append((token, kind))

    def _has(self, kind: str) -> bool:
        return any((s[0] if isinstance(s, list) else s["kind"]) == kind for s in self._all())

    def _all(self) -> list[Any]:
        return [s for part in ("listen", "prologue", "cycle") for s in self.schedule.get(part, [])]

    def _feeds_finish_text(self) -> bool:
        cycle = [s if isinstance(s, dict) else {"kind": s[0]} for s in self.schedule["cycle"]]
        kinds = {s["kind"] for s in cycle}
        return (
            any(s["kind"] == "fed" and s["as"] == "transcript" for s in cycle)
            and "speech" in kinds
            and "transcript" not in kinds
        )

    def _drawn(self, token: int) -> int:
        for s in self._all():
            if isinstance(s, dict) and s["kind"] == "fed" and token in s.get("stop", []):
                self.closed.add(s["feed"])
        return token

    def _pick(self, ids: list[int]) -> int:
        """Draw from ids, the offered done included; a drawn offer is emitted and the draw is made again."""
        while True:
            offered = self.offer and self.vocab["done"] is not None and self.vocab["done"] not in ids
            row = self.logits[len(self.out)]
            token = max(sorted([*ids, self.vocab["done"]] if offered else ids), key=lambda i: row[i])
            if not (offered and token == self.vocab["done"]):
                return token
            self._drawn(token)
            self.offer, self.reflection_done = False, True
            self._emit(token, "done")
            if self._full():
                return -1

    def _run_segment(self, segment: Any) -> None:
        if isinstance(segment, dict) and segment["kind"] == "tool":
            self._call(segment["budget"], segment.get("ids", ()))
            return
        if isinstance(segment, dict) and segment["kind"] == "forced":
            for token in segment["ids"]:
                self._emit(token, segment["as"])
            self.offer = False
            return
        if isinstance(segment, dict) and segment["kind"] == "fed":
            self._fed(segment)
            return
        if isinstance(segment, dict) and segment["kind"] == "choice":
            self._choice(segment)
            return
        own = segment if isinstance(segment, dict) else {"kind": segment[0], "budget": segment[1]}
        budget = INFINITY if own["budget"] is None else own["budget"]
        if own.get("name") in self.schedule.get("limits", {}):
            limit = self.schedule["limits"][own["name"]]
            budget = min(
                budget, max(limit, self.schedule.get("floor", 0)) if own["kind"] == "reflection" else limit
            )
        getattr(self, f"_{own['kind']}")(budget, own)

    def _fed(self, segment: dict[str, Any]) -> None:
        name, count = segment["feed"], 0
        while not self._full() and (segment["budget"] is None or count < segment["budget"]):
            if name in self.closed or not self.feeds[name]:
                self.closed.add(name)
                self.heard |= self.listens
                self.text_done |= segment["as"] == "transcript" and self._feeds_finish_text()
                return
            self._emit(self.feeds[name].pop(0), segment["as"])
            self.offer = False
            count += 1

    def _choice(self, segment: dict[str, Any]) -> None:
        paths, depth = [list(path) for path in segment["choices"]], 0
        while not self._full():
            if depth and len(paths) == 1:
                token = paths[0][depth]
            else:
                token = self._drawn(self._pick([path[depth] for path in paths]))
                if self._full():
                    return
            self.offer = False
            self._emit(token, segment["as"])
            depth += 1
            paths = [path for path in paths if path[depth - 1] == token]
            if len(paths[0]) == depth:
                return

    def _reflection(self, budget: int, own: dict[str, Any]) -> None:
        reflect = self.schedule.get("reflect", "on")
        if reflect == "off" or self.reflection_done:
            return
        cap = self.caps[self.num_reflections] if self.num_reflections < len(self.caps) else INFINITY
        self.num_reflections += 1
        cap = min(cap, reflect) if isinstance(reflect, int) else cap
        budget = min(budget, max(cap, self.schedule.get("floor", 0)))
        if budget == 0:
            return
        vocab = self.vocab
        opening, close = (
            own.get(name, [] if vocab[name] is None else [vocab[name]]) for name in ("open", "close")
        )
        for token in opening:
            self._emit(token, "open")
            self.offer = False
        stop = own.get("stop", [])
        drawn: list[int] = []
        for _ in range(budget):
            if self._full():
                return
            ends = [t for t in close if _matched([*drawn, t], close)] + stop
            ends += [] if vocab["done"] is None else [vocab["done"]]
            token = self._drawn(self._pick([*range(*vocab["text"]), *ends]))
            if self._full():
                return
            self.offer = False
            if token == vocab["done"]:
                self.reflection_done = True
                self._emit(token, "done")
                return
            drawn.append(token)
            if token in stop or (close and drawn[-len(close) :] == close):
                self._emit(token, "close")
                self.offer = True
                return
            self._emit(token, "reflection")
        if close and not self._full():
            for token in close[_matched(drawn, close) :]:
                self._emit(token, "close")
            self.offer = True

    def _offered_call(self) -> list[int]:
        return [] if self.schedule.get("tool", "off") == "off" else [self.vocab["tool_open"]]

    def _call_freely(self) -> None:
        most = self.schedule.get("tool", "off")
        self._call(most if isinstance(most, int) else None)

    def _call(self, budget: int | None, begin: Sequence[int] = ()) -> None:
        """A call, and behind it the end of the reply or the next call."""
        vocab = self.vocab
        self.offer = False
        self._emit(vocab["tool_open"], "tool_mark")
        for token in begin:
            self._emit(token, "tool")
        for _ in range(INFINITY if budget is None else budget):
            if self._full():
                return
            token = self._drawn(self._pick([*range(*vocab["text"]), vocab["tool_close"]]))
            if token == vocab["tool_close"]:
                break
            self._emit(token, "tool")
        self._emit(vocab["tool_close"], "tool_mark")
        more = (
            [vocab["tool_open"], vocab["tool_between"]] if self.schedule.get("parallel_calls", True) else []
        )
        while not self._full():
            token = self._pick([vocab["eot"], *more])
            if token == vocab["eot"]:
                self._emit(token, "end")
                self.over = True
            elif token == vocab["tool_open"]:
                self._call_freely()
                return
            else:
                self._emit(token, "tool_mark")
                more = more[:1]

    def _transcript(self, budget: int, own: dict[str, Any]) -> None:
        if self.text_done:
            return
        vocab, spoken = self.vocab, self._has("speech")
        more = list(range(*vocab["speech"])) if spoken else [vocab["eot"]]
        for _ in range(budget):
            if self._full():
                return
            token = self._pick([*range(*vocab["text"]), *more, *self._offered_call()])
            if self._full():
                return
            if token == vocab["tool_open"]:
                self._call_freely()
                return
            if spoken and token in more:
                self.text_done = True
                return
            self._drawn(token)
            self.offer = False
            if token == vocab["eot"]:
                self._emit(token, "end")
                self.over = True
                return
            self._emit(token, "transcript")
            if token in own.get("stop", []):
                return

    def _speech(self, budget: int, own: dict[str, Any]) -> None:
        vocab = self.vocab
        count = 0
        while (count < budget or self.text_done) and not self._full():
            is_free = self.text_done or not (self._has("transcript") or self._feeds_finish_text())
            ends = [vocab["eot"], *self._offered_call()] if is_free else []
            token = self._drawn(self._pick([*range(*vocab["speech"]), *ends]))
            if self._full():
                return
            if token == vocab["tool_open"]:
                self._call_freely()
                return
            self.offer = False
            if token == vocab["eot"]:
                self._emit(token, "end")
                self.over = True
                return
            self._emit(token, "speech")
            count += 1
            if token in own.get("stop", []):
                return


def scripted(absent: set[str], seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """A vocabulary and random logits of 60 tokens over it, of which no two are equal."""
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(SIZE), (60, 1)), axis=1)
    for low, high in ((0, 3), (30, SIZE)):  # special ids and those of tags come often enough
        logits[:, low:high] += rng.integers(0, 16, size=(60, high - low))
    return {**VOCAB, **dict.fromkeys(absent)}, logits * 40 + np.arange(SIZE)


def hold(
    schedule: dict[str, Any],
    absent: set[str],
    caps: list[int],
    seed: int,
    limit: int,
    given_ids: dict[str, list[int]] | None = None,
) -> None:
    """The host's cursor gives what the interpreter gives, over random logits."""
    vocab, logits = scripted(absent, seed)
    naive = Naive(schedule, vocab, logits, limit, caps, given_ids)
    assert replay(schedule, vocab, logits, limit, caps, feeds=given_ids) == naive.run()
