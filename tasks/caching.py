"""Prefect's own cache, made trustworthy: keyed by stage key, locked by flock, verified on a hit."""

import asyncio
import os
from pathlib import Path
from typing import Literal

from prefect.cache_policies import CacheKeyFnPolicy, CachePolicy
from prefect.filesystems import LocalFileSystem
from prefect.serializers import Serializer
from prefect.transactions import IsolationLevel

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.store import Store, verified_record
from requant.store.durable import write_durably
from requant.store.locks import Say, acquire, is_held
from requant.store.results import SERIALIZER, StageResult, agreed_result, key_of, result_suffix


class StageResultSerializer(Serializer):
    """JSON of a StageResult, and of nothing else.

    Prefect's own JSON imports and makes whatever class the file names.
    """

    type: Literal["requant-verified-json"] = SERIALIZER

    def dumps(self, obj: StageResult) -> bytes:
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> StageResult:
        return StageResult.model_validate_json(blob)


class ResultFolder(LocalFileSystem):
    """Prefect's results of a store, each believed only if the store says the same.

    What is read is compared with the verified record of its key, and handed to Prefect in the words
    of this module.
    """

    # Else Prefect would take it for its own local file system, wherever that is asked for.
    _block_type_name = "requant results"

    # Prefect's own is a coroutine unless it is told to be none.
    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Read a result and verify every byte of its artifact.

        Raises:
            ArtifactError: If it says anything else than the store. Prefect takes what cannot be
                read for a miss.
        """
        file = self._resolve_path(path)
        store = Store(file.parent.parent)
        record, reason = verified_record(store, key_of(file))
        if record is None:
            raise ArtifactError(f"{file}: cached result refused: {reason}")
        result = agreed_result(store, file, record)
        metadata = {"storage_key": path, "serializer": {"type": SERIALIZER}}
        return canonical_json({"metadata": metadata, "result": result.model_dump_json()})

    async def aread_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> str:  # type: ignore[override]
        """Write a result whole or not at all; Prefect would write through a link in its place."""
        file = self._resolve_path(path)
        write_durably(file, content)
        return str(file)

    async def awrite_path(self, path: str, content: bytes) -> str:
        return await asyncio.to_thread(self.write_path, path, content)

    # Prefect asks this before it reads or writes; its own follows a link in a result's place.
    def _resolve_path(self, path: str) -> Path:
        return Path(self.basepath or ".").resolve() / Path(path).name


class FlockManager:
    """Prefect's LockManager protocol on flock, which the kernel releases when the holder dies.

    `prefect.locking.filesystem` keeps its lock in a file that outlives a SIGKILL.
    """

    def __init__(self, store: Store, what: str = "", say: Say | None = None) -> None:
        self._store = store
        self._what = what
        self._say = say
        self._held: dict[str, tuple[str, int]] = {}

    def _path(self, key: str) -> Path:
        return self._store.lock_path(f"task-{key}")

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        if self.is_lock_holder(key, holder):
            return True
        descriptor = acquire(self._path(key), acquire_timeout, what=self._what, say=self._say)
        if descriptor is None:
            return False
        self._held[key] = (holder, descriptor)
        return True

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"lock {key!r} is not held by {holder!r}")
        _, descriptor = self._held.pop(key)
        os.close(descriptor)

    def is_locked(self, key: str) -> bool:
        return key in self._held or is_held(self._path(key))

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return self._held.get(key, ("", -1))[0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        descriptor = acquire(self._path(key), timeout, say=self._say)
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)


def cache_policy(store: Store, what: str = "", say: Say | None = None) -> CachePolicy:
    """Cache a task on its `key` parameter; of two runs that race on one key, one works.

    Args:
        store: Of artifacts and locks.
        what: Who asks, for those who wait for it.
        say: Is told for whom it waits.
    """
    suffix = result_suffix(store)
    policy = CacheKeyFnPolicy(
        cache_key_fn=lambda _, parameters: f"{parameters['key'].digest}{suffix}"
    )
    return policy.configure(
        isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=FlockManager(store, what, say)
    )
