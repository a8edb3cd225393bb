"""What a replica does when a directory did not take a state, without a cluster; `make ray` runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
from realtime_client import RealtimeClient, connected, greeted, make_context, run

from innervoice import Engine
from innervoice.server.chat.kept import KeptAnswer
from innervoice.server.cluster.directory import Directory
from innervoice.server.realtime.saved import SavedDialogue

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from innervoice.server.ray.replica import Replica
from innervoice.server.ray.session_hub import ReplicaStore

pytestmark = pytest.mark.slow
HOME = "a"


class LossyHub:
    """A directory that lives on in this process, and takes no state while it is_away; num_saves: those that it took."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.is_away = False
        self.num_saves = 0
        self.life = "first"

    async def save(self, key: str, home: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        if self.is_away:
            raise ConnectionError("the directory does not answer")
        self.num_saves += 1
        return self.directory.save(key, home, data, keep_s, term)

    async def home(self, key: str) -> str | None:
        return self.directory.home(key)

    async def forget(self, key: str, home: str) -> None:
        self.directory.forget(key, home)

    async def lives(self) -> tuple[str, ...]:
        return (self.life,)

    def num_turns(self, token: str) -> int:
        """Answers in the state of a session, as another replica would take it."""
        taken = self.directory.take(token, HOME)
        assert taken is not None
        dialogue = SavedDialogue.from_bytes(taken[0])
        return sum(getattr(item, "role", None) == "assistant" for item in dialogue.items)


@pytest.fixture
def hub() -> LossyHub:
    return LossyHub()


@pytest.fixture
def replica(small_engine: Engine, hub: LossyHub) -> Iterator[Replica]:
    """The parts of a replica that watch its directories, and a real server."""
    made = Replica.__new__(Replica)
    made._hub, made._lives = hub, (hub.life,)  # type: ignore[assignment]
    made._store = ReplicaStore(hub, HOME)  # type: ignore[arg-type]
    made._server = make_context(small_engine, max_output_tokens=30)
    made._server.store = made._store
    yield made
    made._server.listener.close()
    made._server.calls.shutdown()


async def turn(client: RealtimeClient) -> None:
    client.say("What is the weather like?")
    await client.answer()
    await client.settle()


async def watch(replica: Replica, client: RealtimeClient) -> None:
    await replica._watch_directories()
    await client.settle()


def test_a_state_that_did_not_arrive_is_sent_again(replica: Replica, hub: LossyHub) -> None:
    server = replica._server
    answer = KeptAnswer("audio_" + "c" * 24, "Yes.", b"", b"an export", 2**40)

    async def work() -> None:
        async with connected(server, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await turn(client)
            assert hub.num_turns(token) == 1
            hub.is_away = True
            await turn(client)
            server.kept.add(answer)
            with pytest.raises(ConnectionError):
                await replica._save_answer(answer)
            with pytest.raises(ConnectionError):  # still away: the next look tries once more
                await watch(replica, client)
            hub.is_away = False
            assert hub.num_turns(token) == 1
            await watch(replica, client)
            assert hub.num_turns(token) == 2
            data, _ = hub.directory.take(answer.audio_id, HOME) or (b"", 0)
            assert msgspec.msgpack.decode(data, type=KeptAnswer) == answer
            before = hub.num_saves
            await watch(replica, client)
            assert hub.num_saves == before, "nothing is behind"
        await server.resumable.close()

    run(work())


def test_a_directory_of_another_life_gets_everything(replica: Replica, hub: LossyHub) -> None:

    async def work() -> None:
        async with connected(replica._server, innervoice="1") as client:
            token = (await greeted(client))["innervoice"]["resume_token"]
            await turn(client)
            hub.directory, hub.life = Directory(), "second"
            await watch(replica, client)
            assert hub.num_turns(token) == 1
        await replica._server.resumable.close()

    run(work())


def test_a_deadline_of_the_caller_counts_as_a_loss(hub: LossyHub) -> None:
    store = ReplicaStore(hub, HOME)  # type: ignore[arg-type]
    never = asyncio.Event()

    async def save(*values: object) -> bool:
        return await never.wait()

    async def work() -> None:
        hub.save = save  # type: ignore[method-assign]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await store.save("token", b"state", 1.0)
        assert store.is_behind

    run(work())
