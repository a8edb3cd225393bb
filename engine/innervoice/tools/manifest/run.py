"""ManifestRun: every item of a manifest answered once, several at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from innervoice.api.engine import Engine
from innervoice.tools.manifest.items import ManifestItem
from innervoice.tools.manifest.results import Result, RunFolder
from innervoice.types import OutOfCapacity, Reply, RequestFailed, Sampling

FAILURES = (ValueError, OSError, RequestFailed, OutOfCapacity)
_COUNTS = (
    "prompt_tokens",
    "reflection_tokens",
    "transcript_tokens",
    "speech_tokens",
    "total_new_tokens",
    "audio_s",
)


@dataclass(frozen=True)
class FailedItem:
    """An item without a result. reason: one sentence."""

    item_id: str
    reason: str


class ManifestRun:
    """Answers items with an engine. request: options of every reply, as for `Engine.stream`; their sampling has a
    seed only where each item is to have the same one.
    """

    def __init__(self, engine: Engine, folder: RunFolder, request: Mapping[str, Any]) -> None:
        self._engine = engine
        self._folder = folder
        self._request = {"realtime": False, **request}
        self._sampling: Sampling = self._request.pop("sampling", None) or Sampling()

    def run(self, items: list[ManifestItem], concurrency: int) -> Iterator[ManifestItem | FailedItem]:
        """Answer the items that the folder has no result of, so many at a time; each is returned when it is over.

        A failure is that of its item, and the rest goes on. Raises EngineDead.
        """
        waiting = iter([item for item in items if item.item_id not in self._folder.done])
        running: dict[Future[Result], ManifestItem] = {}
        with ThreadPoolExecutor(concurrency, "innervoice-manifest") as pool:
            try:
                while True:
                    for item in waiting:
                        running[pool.submit(self._answer, item)] = item
                        if len(running) == concurrency:
                            break
                    if not running:
                        return
                    over, _ = wait(running, return_when=FIRST_COMPLETED)
                    for one in over:
                        yield self._take(one, running.pop(one))
            finally:
                for one in running:
                    one.cancel()

    def _take(self, made: Future[Result], item: ManifestItem) -> ManifestItem | FailedItem:
        try:
            self._folder.add(made.result())
        except FAILURES as error:
            return FailedItem(item.item_id, " ".join(str(error).split()))
        return item

    def _answer(self, item: ManifestItem) -> Result:
        """The result of an item, whose sound is written."""
        if len(item.turns) == 1:
            replies = [self._engine.stream(item.turns[0].prompt, **self._of_turn(item, 1)).reply()]
        else:
            with self._engine.open_session() as session:
                replies = [
                    session.reply(turn.prompt, **self._of_turn(item, number)).reply()
                    for number, turn in enumerate(item.turns, 1)
                ]
        turns = [self._turn_result(item, number, reply) for number, reply in enumerate(replies, 1)]
        return {"id": item.item_id, "turns": turns, "fields": dict(item.fields)}

    def _of_turn(self, item: ManifestItem, number: int) -> dict[str, Any]:
        sampling = self._sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=item.seed(number))
        return {**self._request, "sampling": sampling}

    def _turn_result(self, item: ManifestItem, number: int, reply: Reply) -> Result:
        """A turn of a result: what was heard, and apart from it what was thought."""
        path = None
        if len(reply.audio.samples):
            path = self._folder.audio_path(item.item_id, number)
            reply.audio.save(path)
        return {
            "transcript": reply.transcript,
            "reflections": list(reply.reflections),
            "audio": None if path is None else str(path.relative_to(self._folder.folder)),
            "finish_reason": reply.finish_reason,
            "seed": reply.usage.sampling.seed,
            "ids": reply.ids,
            "usage": {name: getattr(reply.usage, name) for name in _COUNTS},
        }
