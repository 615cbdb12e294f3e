"""Nights on a real Prefect server and worker: overlapping, cancelled, overdue, killed stages."""

import time

from requant.services import stop
from requant.store import Store
from tests.e2e.long_night import long_night, resumed_at, wait_for_checkpoint
from tests.e2e.machine import Machine, kill

# -------------------------------------------------------------------- nights that must not run


def test_a_second_night_is_cancelled_and_cancelling_leaves_no_orphan(machine: Machine) -> None:
    run = long_night(machine, 1, launcher="process")
    assert len(machine.stage_processes()) == 1
    second = machine.wait(machine.start(), "CANCELLED")
    assert "concurrency limit" in second["state"]["message"].lower()
    started = time.monotonic()
    machine.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    machine.wait(run, "CANCELLED", seconds=30)
    assert not machine.stage_processes()
    assert time.monotonic() - started < 10


def test_an_overdue_night_is_skipped_with_the_reason(machine: Machine) -> None:
    run = machine.wait(machine.start(hours_ago=5), "CANCELLED")
    assert "later than runtime.max_late_minutes=180" in run["state"]["message"]


# -------------------------------------------------------------------- what is killed goes on


def test_a_killed_stage_goes_on_and_a_server_that_restarts_is_waited_for(machine: Machine) -> None:
    run = long_night(machine, 2, launcher="process")
    last = wait_for_checkpoint(machine, run)
    kill(*machine.stage_processes())
    machine.wait_for_log(run, "resuming from checkpoint-")
    assert stop(Store(machine.state), "prefect-server")
    assert "prefect-server: started" in machine.up()
    assert machine.wait(run, "COMPLETED")["run_count"] == 1
    assert "most likely the machine ran out of memory" in machine.log(run)
    assert resumed_at(machine, run) >= last
    logs = sorted(path.name for path in (machine.state / "logs" / run).glob("train_adapter*"))
    assert logs == ["train_adapter.1.log", "train_adapter.2.log"]
