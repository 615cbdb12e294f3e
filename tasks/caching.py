"""Prefect's own cache, made trustworthy: keyed by stage key, locked by flock, verified on a hit."""

import asyncio
import os
from pathlib import Path
from typing import Any, Literal

from prefect.cache_policies import CacheKeyFnPolicy, CachePolicy
from prefect.serializers import JSONSerializer
from prefect.transactions import IsolationLevel
from pydantic import BaseModel, ConfigDict

from requant.canonical import digest_of
from requant.errors import ArtifactError
from requant.store import ArtifactRef, Store, store_of, verified_record
from requant.store.locks import Say, acquire, is_held


class StageResult(BaseModel):
    """What a stage's task returns and Prefect persists: a few hundred bytes of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    artifact: ArtifactRef


class VerifiedJSONSerializer(JSONSerializer):
    """JSON whose reading fails when the artifact it names is gone or altered.

    Prefect treats an unreadable result as a cache miss, which is what such an artifact is.
    """

    type: Literal["requant-verified-json"] = "requant-verified-json"

    def loads(self, blob: bytes) -> Any:
        """Read a result and verify every byte of its artifact.

        Raises:
            ArtifactError: If the record is gone, or the artifact does not match its manifest.
        """
        result = super().loads(blob)
        if isinstance(result, StageResult):
            record, reason = verified_record(store_of(result.artifact), result.key)
            if record is None:
                raise ArtifactError(f"{result.stage}: cached result refused: {reason}")
        return result


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
    # A result names the folder its artifact lies in: a state folder that was moved or copied must
    # look for the artifact in itself, not where it came from.
    place = digest_of(str(store.root.resolve()))[:8]
    policy = CacheKeyFnPolicy(
        cache_key_fn=lambda _, parameters: f"{parameters['key'].digest}-{place}"
    )
    return policy.configure(
        isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=FlockManager(store, what, say)
    )
