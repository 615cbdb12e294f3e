"""Nights whose flow, worker or machine dies: noticed, and gone on with."""

import time

from tests.e2e.long_night import long_night, resumed_at, wait_for_checkpoint
from tests.e2e.machine import Machine, kill


def test_a_killed_flow_and_a_stopped_machine_leave_a_run_that_goes_on(machine: Machine) -> None:
    run = long_night(machine, 3)
    last = wait_for_checkpoint(machine, run)
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
    assert ended["name"] == crashed["name"]
    # At most one checkpoint interval is done again.
    assert resumed_at(machine, run) >= last


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
