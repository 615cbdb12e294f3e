"""A night on a real MLflow server, looked at in a real browser: can a person walk the lineage?

The server asks for a password, as that of `requant up` does.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from requant.errors import TransientError
from requant.machine.basic_auth import LOGIN
from requant.report.lineage import lineage_html
from requant.report.night import StageRow, night_report
from requant.store import StageRecord, Store
from tasks import tracking
from tasks.tracking.nights import BASE_PERPLEXITY, NIGHT_PERPLEXITY, SIZE
from tasks.tracking.protected import APP, CREDENTIALS
from tests.support.browser import browser_window, follow, keep
from tests.support.nights import CHAIN, make_night

ROOT = Path(__file__).parents[2]
KNOWN = ("requant", "s3cret")
START_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", APP]
    command += ["--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    found = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **quiet, "PYTHONPATH": found, CREDENTIALS: ":".join(KNOWN)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, folder / "log")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in zip(("USERNAME", "PASSWORD"), KNOWN, strict=True):
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
            yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"mlflow server did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def night(
    server: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tracking.TrackingRun, dict[str, StageRecord]]:
    store = Store(tmp_path_factory.mktemp("state"))
    records = make_night(store)
    uri = tracking.prepare_database(server, store.root)
    parent = tracking.open_parent(uri, "nights", "flow-1", "tiny, night 1", {"name": "tiny"})
    for stage, record in records.items():
        run = tracking.open_stage(parent, stage)
        for name, curve in record.curves.items():
            for step, value in curve:
                tracking.log_points(run, {name: value}, step)
        inputs = {role: records[source] for role, source in CHAIN[stage][1].items()}
        tracking.close_stage(run, record, inputs, store=store, cached=False)
    links = tracking.model_links(parent, [record.digest for record in records.values()])
    page = lineage_html(list(records.values()), links, title="tiny, night 1")
    rows = [StageRow(stage, "done", record) for stage, record in records.items()]
    report = night_report("tiny, night 1", rows)
    figures = {BASE_PERPLEXITY: 9.75, NIGHT_PERPLEXITY: 9.25, SIZE: 0.31}
    tracking.close_parent(parent, "FINISHED", page, report, figures, verdict="challenger")
    return parent, records


@pytest.fixture(scope="module")
def browser_page(server: str) -> Iterator[Any]:
    with browser_window() as page:
        page.goto(f"http://{':'.join(KNOWN)}@{server.removeprefix('http://')}{LOGIN}")
        assert page.url == f"{server}/"
        yield page


def routes() -> set[tuple[str, str]]:
    """List method and path of all MLflow's application answers to, from its own tables."""
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    native = app.openapi()["paths"].items()
    found = {(method.upper(), path) for path, methods in native for method in methods}
    assert any("/assistant/" in path for _, path in found)
    for rule in pages.url_map.iter_rules():
        found |= {(method, rule.rule) for method in rule.methods or ()}
    return {(method, re.sub(r"[<{][^>}]*[>}]", "1", path)) for method, path in found}


def test_without_the_password_no_route_answers(server: str) -> None:
    asked = routes()
    assert len(asked) > 500
    assert ("POST", "/graphql") in asked
    assert ("GET", "/get-artifact") in asked
    with httpx.Client(base_url=server) as client:
        answers = {
            f"{method} {path}": client.request(method, path).status_code
            for method, path in sorted(asked)
        }
        let_in = client.post(
            "/api/2.0/mlflow/experiments/search", json={"max_results": 1}, auth=KNOWN
        )
    assert let_in.status_code == 200
    opened = {asked for asked, status in answers.items() if status != 401}
    assert opened == {"GET /health", "HEAD /health"}


def test_night_page_leads_to_the_models_and_back_to_the_base(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], browser_page: Any
) -> None:
    parent, records = night
    page = browser_page

    page.goto(tracking.run_page(parent))
    page.get_by_text("One night of incremental training").wait_for()
    keep(page, "night")

    gptq = records["requantize_gptq"].digest
    page = follow(page, f"gptq {gptq[:8]}")
    page.get_by_role("heading", name=f"requantize_gptq-{gptq[:12]}").wait_for()
    page.get_by_text("describe_choice/acc").first.wait_for()
    keep(page, "model")
    for stage, name in (("merge_fp16", "merged"), ("train_adapter", "adapter")):
        assert page.get_by_role("link", name=f"{name} {records[stage].digest[:8]}").count() == 1

    base = records["prepare_base"].digest
    page = follow(page, f"base {base[:8]}")
    page.get_by_role("heading", name=f"prepare_base-{base[:12]}").wait_for()
    page.get_by_text("Led to:").wait_for()
    keep(page, "base")


def test_all_nights_stand_side_by_side_with_the_figures_that_matter(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], browser_page: Any
) -> None:
    parent, _ = night
    page = browser_page
    page.goto(tracking.run_page(parent))
    page = follow(page, "all nights")
    # Columns outside of the window are not drawn.
    page.set_viewport_size({"width": 2000, "height": 1000})
    for name in (BASE_PERPLEXITY, NIGHT_PERPLEXITY, SIZE, "verdict"):
        page.get_by_role("columnheader", name=name).first.wait_for()
    for text in ("9.75", "9.25", "0.31", "challenger"):
        page.get_by_role("gridcell").get_by_text(text, exact=True).first.wait_for()
    keep(page, "nights")
    page.close()


def test_stage_page_shows_what_went_in_and_out(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], browser_page: Any
) -> None:
    parent, records = night
    page = browser_page
    page.goto(tracking.run_page(tracking.open_stage(parent, "merge_fp16")))
    page.get_by_text("Logged models (3)").wait_for()
    for stage in ("prepare_base", "train_adapter", "merge_fp16"):
        page.get_by_role("link", name=f"{stage}-{records[stage].digest[:4]}").first.wait_for()
    page.get_by_text(re.compile("Heldout", re.IGNORECASE)).first.wait_for()
    assert page.get_by_text(records["prepare_data"].digest[:36]).count() >= 1
    keep(page, "stage")


def test_lineage_page_is_shown_inside_mlflow(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], browser_page: Any
) -> None:
    parent, records = night
    page = browser_page
    page.goto(tracking.run_page(parent).replace("?", "/artifacts/lineage.html?"))
    frame = page.frame_locator("iframe").first
    frame.get_by_role("heading", name="Lineage: tiny, night 1").wait_for()
    for record in records.values():
        assert frame.locator(f"[id='{record.digest}']").count() == 1
    keep(page, "lineage")


def test_lineage_page_stands_alone(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], browser_page: Any, tmp_path: Path
) -> None:
    _, records = night
    path = tmp_path / "lineage.html"
    path.write_text(lineage_html(list(records.values()), title="alone"))
    asked: list[str] = []
    listen = lambda request: asked.append(request.url)  # noqa: E731
    browser_page.on("request", listen)
    browser_page.goto(path.as_uri())
    browser_page.remove_listener("request", listen)
    assert asked == [path.as_uri()]
    # A person reads it without scrolling sideways.
    wide = browser_page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    assert not wide


def test_links_of_the_lineage_are_absolute_with_a_server(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]], server: str
) -> None:
    parent, records = night
    digest = records["merge_fp16"].digest
    links = tracking.model_links(parent, [digest])
    assert links[digest].startswith(f"{server}/#/experiments/{parent.experiment_id}/models/m-")
    assert not tracking.model_links(parent, [])


def test_server_that_goes_away_is_worth_a_retry(
    night: tuple[tracking.TrackingRun, dict[str, StageRecord]],
) -> None:
    parent, _ = night
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TransientError, match="does not answer"):
        tracking.open_parent(gone, "nights", parent.flow_run_id, "night", {})
