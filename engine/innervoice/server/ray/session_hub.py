"""SessionHub: the directories of sessions, as actors that outlive every replica."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Any

import ray

from innervoice.server.cluster.directory import Directory, shard_of

NAMESPACE = "innervoice"


class DirectoryActor:
    """A directory in a process of its own, which Ray starts anew with the same arguments, and empty, if it dies.

    secret: signs the client secrets of all replicas.
    """

    def __init__(self, max_bytes: int, secret: bytes) -> None:
        self._directory = Directory(max_bytes)
        self._secret = secret
        self._life = secrets.token_hex(8)

    def save(self, key: str, home: str, data: bytes | None, keep_s: float, term: int) -> bool:
        """As `Directory.save`."""
        return self._directory.save(key, home, data, keep_s, term)

    def take(self, key: str, home: str) -> tuple[bytes, int] | None:
        """As `Directory.take`."""
        return self._directory.take(key, home)

    def home(self, key: str) -> str | None:
        """As `Directory.home`."""
        return self._directory.home(key)

    def forget(self, key: str, home: str) -> None:
        """As `Directory.forget`."""
        self._directory.forget(key, home)

    def secret(self) -> bytes:
        """The secret of the application."""
        return self._secret

    def life(self) -> str:
        """A name that is another one after each start."""
        return self._life

    def size(self) -> tuple[int, int]:
        """Sessions and bytes that are kept."""
        return len(self._directory), self._directory.num_bytes


class SessionHub:
    """The directories of one application, which share its keys by their hash; a process connects at its first call.

    name: of the application. They are made by whoever comes first, and stay until `end`. max_bytes: of each.
    """

    def __init__(self, name: str, num_shards: int = 1, max_bytes: int = 2**30) -> None:
        self._name, self._num_shards, self._max_bytes = name, num_shards, max_bytes
        self._actors: dict[int, Any] = {}

    async def save(self, key: str, home: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        """Keep a session for its home -> whether it was kept."""
        return bool(await self._actor(key).save.remote(key, home, data, keep_s, term))

    async def take(self, key: str, home: str) -> tuple[bytes, int] | None:
        """Move a session to a new home -> its state and its term."""
        found: tuple[bytes, int] | None = await self._actor(key).take.remote(key, home)
        return found

    async def home(self, key: str) -> str | None:
        """Name the replica that has a session."""
        found: str | None = await self._actor(key).home.remote(key)
        return found

    async def forget(self, key: str, home: str) -> None:
        """Forget a session that has ended at its home."""
        await self._actor(key).forget.remote(key, home)

    async def secret(self) -> bytes:
        """The secret that signs tokens of all replicas."""
        made: bytes = await self._shard(0).secret.remote()
        return made

    async def lives(self) -> tuple[str, ...]:
        """Names of the directories; one that was started anew, and has lost what it kept, has another name."""
        return tuple(await asyncio.gather(*(self._shard(i).life.remote() for i in range(self._num_shards))))

    async def size(self) -> tuple[int, int]:
        """Sessions and bytes in all directories."""
        sizes = await asyncio.gather(*(self._shard(i).size.remote() for i in range(self._num_shards)))
        return sum(num for num, _ in sizes), sum(num_bytes for _, num_bytes in sizes)

    def end(self) -> None:
        """End the actors that there are, with all that they keep."""
        for i in range(self._num_shards):
            with suppress(ValueError):  # there is none of that name
                ray.kill(ray.get_actor(self._actor_name(i), namespace=NAMESPACE))
        self._actors.clear()

    def _actor(self, key: str) -> Any:
        return self._shard(shard_of(key, self._num_shards))

    def _actor_name(self, number: int) -> str:
        return f"{self._name}-sessions-{number}"

    def _shard(self, number: int) -> Any:
        if number not in self._actors:
            options = ray.remote(DirectoryActor).options(
                name=self._actor_name(number),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                num_cpus=0,
            )
            self._actors[number] = options.remote(self._max_bytes, secrets.token_bytes(32))
        return self._actors[number]


class ReplicaStore:
    """The hub as one replica sees it: where its server leaves sessions.

    is_behind: whether a state did not arrive since that was set to False: everything has to be saved again.
    """

    def __init__(self, hub: SessionHub, replica: str) -> None:
        self._hub = hub
        self._replica = replica
        self.is_behind = False

    async def save(self, token: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        """Leave a session as it is now -> False: another replica has taken it over."""
        try:
            return await self._hub.save(token, self._replica, data, keep_s, term)
        except BaseException:  # the caller's deadline among them
            self.is_behind = True
            raise

    async def take(self, token: str) -> tuple[bytes, int] | None:
        """Take a session over -> its state and its term, None: it is not known."""
        return await self._hub.take(token, self._replica)

    async def is_elsewhere(self, token: str) -> bool:
        """Whether another replica has a session."""
        return await self._hub.home(token) not in (None, self._replica)

    async def forget(self, token: str) -> None:
        """Forget a session that has ended here."""
        await self._hub.forget(token, self._replica)


def session_key(session: str) -> str:
    """The key of a session that a client named by its header."""
    return f"session {session[:256]}"
