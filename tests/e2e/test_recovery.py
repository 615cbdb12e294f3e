"""Nights on a real Prefect server and worker: killed, overlapping, cancelled, overdue.

One machine sees them all: to set one up takes longer than a night.
"""

import sqlite3
import time
from contextlib import closing

from requant.machine.services import stop
from requant.store import Store
from tests.e2e.long_night import long_night, resumed_at, wait_for_checkpoint
from tests.e2e.machine import FINAL, Machine, eventually, kill

# -------------------------------------------------------------------- what is killed goes on


def test_a_killed_flow_and_a_stopped_machine_leave_a_run_that_goes_on(machine: Machine) -> None:
    run = long_night(machine, 3)
    last = wait_for_checkpoint(machine, run)
    name = machine.run(run)["name"]
    kill(machine.flow_process())
    machine.wait(run, "CRASHED", seconds=60)
    # The worker reports the same end twice, and the second report would undo a retry before it.
    time.sleep(5)
    machine.retry(run)
    machine.wait_for_log(run, "resuming from checkpoint-")
    assert f"Crashed; with `requant up` running, `prefect flow-run retry {run}`" in machine.down()
    machine.up()
    crashed = machine.wait(run, "CRASHED")
    assert "stopped with the machine by `requant down`" in crashed["state"]["message"]
    machine.retry(run)
    ended = machine.wait(run, "COMPLETED")
    assert ended["name"] == name
    # At most one checkpoint interval is done again.
    assert resumed_at(machine, run) >= last


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


def test_a_dead_machine_is_noticed_and_the_night_goes_on(machine: Machine) -> None:
    run = long_night(machine, 5)
    last = wait_for_checkpoint(machine, run)
    kill(machine.worker(), machine.flow_process())
    crashed = machine.wait(run, "CRASHED", seconds=200)
    assert "no heartbeat for 90 s" in crashed["state"]["message"]
    # A run of no deployment whose last sign of life the server has forgotten.
    body = {"name": "of requant run", "state": {"type": "RUNNING"}, "flow_id": crashed["flow_id"]}
    forgotten = machine.post("flow_runs/", body)["id"]
    assert "worker: started" in machine.up()
    machine.retry(run)
    machine.wait(run, "COMPLETED")
    assert resumed_at(machine, run) >= last
    assert "give `requant run` again" in machine.wait(forgotten, "CRASHED")["state"]["message"]


# -------------------------------------------------------------------- nights that must not run


def test_a_second_night_is_cancelled_and_cancelling_leaves_no_orphan(machine: Machine) -> None:
    run = long_night(machine, 1, launcher="process")
    assert len(machine.stage_processes()) == 1
    second = machine.wait(machine.start(), "CANCELLED")
    assert "concurrency limit" in second["state"]["message"].lower()
    machine.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    machine.wait(run, "CANCELLED", seconds=30)
    assert not machine.stage_processes()
    # A person who cancels has found no fault: no page says failed.
    page = (machine.state / "reports" / run / "report.html").read_text()
    assert "<h2>train_adapter cancelled</h2>" in page
    with closing(sqlite3.connect(machine.state / "mlflow.db")) as database:
        found = database.execute("SELECT value FROM tags WHERE key = 'verdict'").fetchall()
    assert ("cancelled: train_adapter",) in found


def test_an_overdue_night_is_skipped_with_the_reason(machine: Machine) -> None:
    run = machine.wait(machine.start(hours_ago=5), "CANCELLED")
    assert "later than runtime.max_late_minutes=180" in run["state"]["message"]


def test_of_two_overdue_nights_exactly_one_runs(machine: Machine) -> None:
    """After a day without power: whichever is started first, on whichever of two machines."""
    with machine.second_worker():
        runs = [machine.start(hours_ago=hours) for hours in (5, 1)]
        ends = [machine.wait(run, "CANCELLED", "COMPLETED", seconds=400)["state"] for run in runs]
        assert sorted(state["type"] for state in ends) == ["CANCELLED", "COMPLETED"]
        # The server starts a deploy some seconds after the event: that none runs says nothing.
        eventually(
            "what it promoted is deployed",
            lambda: (
                (runs := machine.runs("deploy-model"))
                and all(run["state_type"] in FINAL for run in runs)
            ),
        )
