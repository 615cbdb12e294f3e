"""For what a stage waits before it begins: Prefect itself waits for a slot without a word."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from requant.store.locks import Say, pauses

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PATIENCE_SECONDS = 10.0
"""Prefect's server learns of a task run seconds after it begins."""


@contextmanager
def telling_of_slots(tag: str, flow_run: UUID, say: Say) -> Iterator[None]:
    """Say, with growing pauses, who holds the slots of a tag while a task of the block waits.

    Args:
        tag: Of the task; Prefect limits how many with it run at once.
        flow_run: That the task belongs to. Once it holds a slot itself nothing more is said.
        say: Gets a line.
    """
    done = threading.Event()

    def watch() -> None:
        waited = 0.0
        for pause in pauses():
            if done.wait(pause):
                return
            waited += pause
            try:
                holders = _holders(tag, flow_run, patient=waited < PATIENCE_SECONDS)
            except Exception as error:
                # Words for a person must never end a night.
                say(f"Prefect's server does not say who holds the slots of the tag {tag}: {error}")
                continue
            if holders is None:
                return
            if holders:
                say(f"waiting since {waited:.0f} s for a slot of the tag {tag}: {holders}")

    # Prefect keeps the server's address in a context variable.
    thread = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _holders(tag: str, flow_run: UUID, *, patient: bool) -> str | None:
    """Name who holds the slots of a tag.

    Returns:
        None where there is no limit or `flow_run` holds one itself; empty where one is free, and,
        for who is patient, where the server does not know a holder yet: it may be this run.
    """
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_concurrency_limit_by_tag(tag)
        except ObjectNotFound:
            return None
        tasks = [_holder(client, item) for item in limit.active_slots]
    if any(run == flow_run for _, run in tasks):
        return None
    unknown = any(run is None for _, run in tasks)
    if len(tasks) < limit.concurrency_limit or (unknown and patient):
        return ""
    names = "; ".join(name for name, _ in tasks)
    return (
        f"all {limit.concurrency_limit} are held, by {names}. `requant up` and `requant setup` "
        "take --accelerators N and --processors N"
    )


def _holder(client: "SyncPrefectClient", task_run: UUID) -> tuple[str, UUID | None]:
    """Name a task run and its night; what a crash left holds its slot for about a minute."""
    try:
        task = client.read_task_run(task_run)
    except ObjectNotFound:
        return f"task run {task_run}", None
    if task.flow_run_id is None:
        return task.name, None
    night = client.read_flow_run(task.flow_run_id)
    state = f", {night.state.name}" if night.state and not night.state.is_running() else ""
    return f"{task.name} of {night.name!r}{state}", night.id
