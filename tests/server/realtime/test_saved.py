"""Conversations that go on at another server of the same model: nothing of them may differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, greeted, make_context, run

from innervoice import Engine
from innervoice.server.admission import draining
from innervoice.server.cluster.directory import Directory
from innervoice.server.context import ServerContext
from innervoice.server.draining import end_all
from innervoice.server.realtime.openings import save_all
from innervoice.server.realtime.saved import SavedDialogue


class DirectoryStore:
    """A directory in this process, as one server sees it."""

    def __init__(self, directory: Directory, home: str) -> None:
        self._directory = directory
        self._home = home

    async def save(self, token: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        return self._directory.save(token, self._home, data, keep_s, term)

    async def take(self, token: str) -> tuple[bytes, int] | None:
        return self._directory.take(token, self._home)

    async def is_elsewhere(self, token: str) -> bool:
        return self._directory.home(token) not in (None, self._home)

    async def forget(self, token: str) -> None:
        self._directory.forget(token, self._home)


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def servers(engine: Engine, directory: Directory) -> Iterator[tuple[ServerContext, ServerContext]]:
    made = [make_context(engine, max_output_tokens=30, resume_grace_s=20.0) for _ in range(2)]
    for name, context in zip("ab", made, strict=True):
        context.store = DirectoryStore(directory, name)
    yield made[0], made[1]
    for context in made:
        context.listener.close()
        context.calls.shutdown()
        assert context.admission.num_held == 0
        assert context.live == set()
    assert engine.parts.core.num_rows == 0


Turn = Callable[[RealtimeClient], Awaitable[Any]]


async def ask(client: RealtimeClient) -> None:
    client.say("What is the weather like?")
    await client.answer()


async def break_in(client: RealtimeClient) -> None:
    """Hear a part of a reply, and say that it was enough."""
    client.say("Tell me a long story.")
    client.send("response.create")
    item = (await client.until("response.output_item.added"))["item"]
    await client.until("response.output_audio.delta")
    client.send("response.cancel")
    await client.until("response.done")
    client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=300)
    await client.until("conversation.item.truncated")


async def delete(client: RealtimeClient) -> None:
    client.say("Never mind me.", id="item_gone")
    await client.answer()
    client.send("conversation.item.delete", item_id="item_gone")
    await client.until("conversation.item.deleted")


def history_of(context: ServerContext) -> dict[str, Any]:
    """The session of the only connection, without what is drawn at random."""
    [live] = context.live
    blob = live._hosted.conversation.scope.session.export()  # type: ignore[attr-defined]
    made = json.loads(blob.split(b"\n", 2)[2])
    return {name: made[name] for name in ("ids", "roles", "replies", "weights", "head")}


async def closed(client: RealtimeClient) -> int:
    return int((await client.until("closed"))["code"])


async def stay(server: ServerContext, turns: list[Turn]) -> tuple[dict[str, Any], bytes]:
    """Have a conversation at one server -> its history and the sound of its last reply."""
    async with connected(server, innervoice="1") as client:
        await greeted(client)
        for turn in turns:
            await turn(client)
        before = len(client.audio())
        await ask(client)
        return history_of(server), client.audio()[before:].tobytes()


async def move(a: ServerContext, b: ServerContext, turns: list[Turn]) -> tuple[dict[str, Any], bytes]:
    """Have the same with all but the last turn at one server, which drains then."""
    async with connected(a, innervoice="1") as client:
        session = await greeted(client)
        for turn in turns:
            await turn(client)
        a.admission.drain()
        await end_all(a, 1001, draining())
        assert await closed(client) == 1001
    token = session["innervoice"]["resume_token"]
    async with connected(b, resume=token) as client:
        greeting = (await client.until("session.created"))["session"]
        assert greeting["id"] == session["id"]
        assert greeting["innervoice"]["resumed"] is True
        await ask(client)
        return history_of(b), client.audio().tobytes()


@pytest.mark.parametrize(
    "turns", [[], [ask, ask], [ask, break_in], [delete, ask]], ids=["new", "asked", "cut", "deleted"]
)
def test_the_next_turn_is_that_of_one_that_stayed(
    servers: tuple[ServerContext, ServerContext], engine: Engine, turns: list[Turn]
) -> None:
    a, b = servers

    async def work() -> None:
        stayed = await stay(make_context(engine, max_output_tokens=30), turns)
        moved = await move(a, b, turns)
        assert moved[0] == stayed[0]
        assert moved[1] == stayed[1] != b""
        await a.resumable.close()

    run(work())


def test_a_turn_that_was_spoken_and_not_answered_goes_along(
    servers: tuple[ServerContext, ServerContext], engine: Engine, question: np.ndarray
) -> None:
    a, b = servers

    async def speak(client: RealtimeClient) -> None:
        client.append(question[:36000])
        client.send("input_audio_buffer.commit")
        await client.until("conversation.item.done")

    async def work() -> None:
        stayed = await stay(make_context(engine, max_output_tokens=30), [ask, speak])
        assert await move(a, b, [ask, speak]) == stayed
        await a.resumable.close()

    run(work())


def test_a_dead_server_loses_nothing_but_the_reply_in_flight(
    servers: tuple[ServerContext, ServerContext], directory: Directory, engine: Engine
) -> None:
    a, b = servers

    async def work() -> None:
        stayed = await stay(make_context(engine, max_output_tokens=30), [ask])
        async with connected(a, innervoice="1") as lost:
            token = (await greeted(lost))["innervoice"]["resume_token"]
            await ask(lost)
            await lost.settle()
            saved = directory.num_bytes
            lost.say("This is never answered.")
            lost.send("response.create")
            await lost.until("response.created")
            async with connected(b, resume=token) as client:  # as if the first server were gone
                await client.until("session.created")
                await ask(client)
                assert history_of(b)["ids"] == stayed[0]["ids"]
            assert 0 < saved < 40_000
            assert await closed(lost) == 4001  # its next turn is refused: the session lives elsewhere

    run(work())


def test_who_hangs_up_leaves_nothing(
    servers: tuple[ServerContext, ServerContext], directory: Directory
) -> None:
    a, b = servers

    async def work() -> None:
        async with connected(a, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await ask(client)
        assert len(directory) == 0
        async with connected(b, resume=token) as client:
            assert (await client.until("error"))["error"]["code"] == "invalid_resume_token"

    run(work())


def test_a_store_that_fails_disturbs_no_talk(servers: tuple[ServerContext, ServerContext]) -> None:
    class Broken:
        async def save(self, token: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
            raise ConnectionError("no store")

        async def take(self, token: str) -> tuple[bytes, int] | None:
            raise ConnectionError("no store")

        async def is_elsewhere(self, token: str) -> bool:
            raise ConnectionError("no store")

        async def forget(self, token: str) -> None:
            raise ConnectionError("no store")

    a, _ = servers
    a.store = Broken()

    async def work() -> None:
        async with connected(a, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await ask(client)
            await ask(client)
            assert client.of_type("error") == []
            client.drop()
        for known in ("resume_elsewhere", token):  # it may have gone on elsewhere: nobody can say
            async with connected(a, resume=known) as client:
                assert (await client.until("error"))["error"]["code"] == "session_store_unavailable"
                assert await closed(client) == 1013, "the client may try again"
        await a.resumable.close()

    run(work())


async def lose(client: RealtimeClient, server: ServerContext) -> None:
    """Lose the connection, and wait until the server keeps the session."""
    await client.settle()
    client.drop()
    while server.live:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_forgetful", [False, True], ids=["directory", "restarted"])
def test_an_old_copy_gives_way_to_the_one_that_went_on(
    servers: tuple[ServerContext, ServerContext], directory: Directory, engine: Engine, is_forgetful: bool
) -> None:
    """is_forgetful: the directory loses all it knows, and the servers save what they have, the old copy first."""
    a, b = servers

    async def work() -> None:
        stayed = await stay(make_context(engine, max_output_tokens=30), [ask, ask])
        async with connected(a, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await ask(client)
            await lose(client, a)
        async with connected(b, resume=token) as client:
            await client.until("session.created")
            await ask(client)
            await lose(client, b)
        assert token in a.resumable, "as it was before it went on"
        if is_forgetful:
            forget_all(directory)
            for server in servers:
                save_all(server)
                await settled(server)
            assert directory.home(token) == "b"
        async with connected(a, resume=token) as client:
            await client.until("session.created")
            await ask(client)
            assert history_of(a) == stayed[0]
            assert client.audio().tobytes() == stayed[1]
        assert directory.home(token) is None
        assert len(a.resumable) == 0
        await b.resumable.close()

    run(work())


def forget_all(directory: Directory) -> None:
    for key in list(directory._entries):
        directory._drop(key)


async def settled(server: ServerContext) -> None:
    """Wait until the sessions that wait for their clients are in the store."""
    for hosted in server.resumable.values():
        await hosted.conversation.scope.lane.drained()
        await hosted._saving


def test_the_copy_that_is_saved_later_wins_over_the_old_one_only(
    servers: tuple[ServerContext, ServerContext], directory: Directory
) -> None:
    a, b = servers

    async def work() -> None:
        async with connected(a, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await ask(client)
            await lose(client, a)
        async with connected(b, resume=token) as client:
            await client.until("session.created")
            forget_all(directory)
            save_all(b)
            await settled(b)
            save_all(a)  # the old copy comes last
            while token in a.resumable:
                await asyncio.sleep(0.01)
            assert directory.home(token) == "b"
            await ask(client)
            assert client.of_type("error") == []

    run(work())


@pytest.mark.parametrize("kind", ["fork", "export"])
def test_the_server_that_has_a_copy_is_known(
    servers: tuple[ServerContext, ServerContext], directory: Directory, kind: str
) -> None:
    a, _ = servers

    async def work() -> None:
        async with connected(a, innervoice="1") as client:
            await greeted(client)
            client.send(f"innervoice.session.{kind}")
            token = (await client.until(f"innervoice.session.{kind}ed"))["resume_token"]
            assert directory.home(token) == "a"
        async with connected(a, resume=token, innervoice="1") as client:
            await client.until("session.created")
            await ask(client)
        await a.resumable.close()

    run(work())


@pytest.mark.parametrize("change", ["version", "cut short"])
def test_what_cannot_be_read_is_refused(
    servers: tuple[ServerContext, ServerContext], directory: Directory, change: str
) -> None:
    a, b = servers

    async def work() -> None:
        async with connected(a, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await ask(client)
            await client.settle()
            taken = directory.take(token, "a")
            assert taken is not None
            data = taken[0]
            changed = msgspec.structs.replace(SavedDialogue.from_bytes(data), version="0.0.0").to_bytes()
            directory.save(token, "a", changed if change == "version" else data[:-5], 10.0)
            async with connected(b, resume=token) as other:
                error = (await other.until("error"))["error"]
                assert error["code"] == "invalid_resume_token"
                assert "begin a new one" in error["message"]

    run(work())
