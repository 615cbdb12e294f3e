"""A night whose machine died without a word, on a real Prefect server and worker."""

from tests.e2e.long_night import long_night, resumed_at, wait_for_checkpoint
from tests.e2e.machine import Machine, kill


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
