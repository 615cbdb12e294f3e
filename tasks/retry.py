"""What is tried again, and when: only what may pass by itself, with growing, jittered delays."""

from typing import Any

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State, TaskRun
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from requant.config import Config
from requant.errors import is_transient

JITTER = 0.5
"""Share by which a retry's delay is lengthened at random: many runs must not return at once."""


MAX_DELAY_SECONDS = 600.0
"""Doubling would reach days before the last of twenty retries."""


RESTART_SECONDS = 300.0
"""A server under load takes a minute to start; one that is away for longer needs a person."""


def retrying(config: Config) -> Retrying:
    """Retry what the flow does outside tasks (hub look-ups, MLflow) as its tasks are retried."""
    runtime = config.runtime
    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(runtime.retries + 1),
        wait=wait_exponential_jitter(
            runtime.retry_seconds, max=MAX_DELAY_SECONDS, jitter=JITTER * runtime.retry_seconds
        ),
        before_sleep=_say_retry,
        reraise=True,
    )


def awaiting_server() -> Retrying:
    """Try again what Prefect itself could not do because its server was away, as while it restarts.

    Prefect asks again by itself only where a connection was made once.
    """
    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(RESTART_SECONDS),
        wait=wait_exponential_jitter(1.0, max=15.0),
        before_sleep=_say_retry,
        reraise=True,
    )


def _say_retry(call: RetryCallState) -> None:
    error = call.outcome.exception() if call.outcome else None
    delay = call.next_action.sleep if call.next_action else 0.0
    get_run_logger().warning("%s; trying again in %.0f s", error, delay)


def may_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect whether to run a task again after its failure."""
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False
