"""A machine of its own for each file, so that files can be tested at once."""

from collections.abc import Iterator

import pytest

from tests.e2e.machine import Machine, make_machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = make_machine(tmp_path_factory.mktemp("machine"))
    said = machine.up()
    assert f"Prefect:  http://127.0.0.1:{machine.prefect_port}" in said
    assert f"MLflow:   http://127.0.0.1:{machine.mlflow_port}" in said
    assert f"log in:   file://{machine.state}/access/login.html" in said
    assert f"for your shell:  source {machine.state}/access/environment" in said
    # A terminal's scrollback stays.
    assert machine.password.partition(":")[2] not in said
    # What Prefect has still to send is nothing a person can act on.
    assert "Still processing" not in said
    yield machine
    assert machine.down().strip() == "stopped: worker, mlflow-server, prefect-server"
    assert "nothing was running" in machine.down()
