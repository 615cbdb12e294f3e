"""GPTQModel's worker threads, whose errors end the stage and not the process.

As they come, a worker that fails prints a traceback and calls `os._exit`: the night would be gone
without a word, its registry and pages half written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what a worker thread of GPTQModel fails with, in place of its end of the process.

    Raises:
        BaseException: The first error of a worker. GPTQModel meets most of them itself, where it
            asks for the result of the work; of a line of its log it never asks.
    """
    from gptqmodel.utils import threadx

    worker = threadx._DeviceWorker
    before = {name: vars(worker)[name] for name in ("_abort_process", "_run_warmup")}
    failed: list[BaseException] = []
    in_warmup: list[BaseException] = []

    def abort(self: Any, error: BaseException) -> None:
        if error in in_warmup:
            in_warmup.remove(error)
            # On to where the worker gives it to those who wait for the work, and comes back here.
            raise error
        failed.append(error)

    def warm_up(self: Any) -> None:
        try:
            before["_run_warmup"](self)
        except BaseException as error:
            in_warmup.append(error)
            raise

    worker._abort_process, worker._run_warmup = abort, warm_up
    try:
        yield
    except Exception as error:
        if failed and error is not failed[0]:
            raise failed[0] from error
        raise
    else:
        if failed:
            raise failed[0]
    finally:
        for name, method in before.items():
            setattr(worker, name, method)
