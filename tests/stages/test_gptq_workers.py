"""A worker thread of GPTQModel that fails: an error like any other, not the end of the process."""

import time
from typing import Any

import pytest
import torch

from requant.models.load import import_gptqmodel
from requant.quantization.gptq_workers import errors_of_workers
from tests.support.chain import child_process

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Any:
    import_gptqmodel()
    from gptqmodel.utils.threadx import DeviceThreadPool

    pool = DeviceThreadPool(devices=[CPU], workers={"cpu": 1})
    yield pool
    pool.shutdown()


def fail() -> None:
    raise OSError(28, "No space left on device")


def fail_in_warmup(*_: Any) -> None:
    fail()


def test_an_error_nobody_asks_for_is_raised_at_the_end(threads: Any) -> None:
    with pytest.raises(OSError, match="No space left"), errors_of_workers():
        unread = threads.submit(CPU, fail)
        # The worker goes on with what comes after it.
        assert threads.submit(CPU, int, 3).result(30) == 3
        assert unread.done()


def test_an_error_that_is_asked_for_is_raised_there(threads: Any) -> None:
    with pytest.raises(OSError, match="No space left"), errors_of_workers():
        threads.submit(CPU, fail).result(30)


def test_what_follows_from_it_does_not_hide_it(threads: Any) -> None:
    with pytest.raises(OSError, match="No space left"), errors_of_workers():
        threads.submit(CPU, fail).exception(30)
        raise RuntimeError("incomplete")


def test_a_worker_that_cannot_begin_is_waited_for_by_nobody() -> None:
    import_gptqmodel()
    from gptqmodel.utils.threadx import DeviceThreadPool, WarmupTask

    warmups = {"cpu": WarmupTask(fail_in_warmup)}
    with pytest.raises(OSError, match="No space left"), errors_of_workers():
        pool = DeviceThreadPool(devices=[CPU], workers={"cpu": 1}, warmups=warmups)
        pool.submit(CPU, int, 3).result(30)


def fail_as_it_comes() -> None:
    """End with 0, unless the worker ends the process first."""
    import_gptqmodel()
    from gptqmodel.utils.threadx import DeviceThreadPool

    DeviceThreadPool(devices=[CPU], workers={"cpu": 1}).submit(CPU, fail).exception(30)
    time.sleep(20)


def test_as_it_comes_it_would_end_the_process() -> None:
    assert child_process(fail_as_it_comes) == 1
