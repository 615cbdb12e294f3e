"""The report of a night in a real browser: whole, silent, on a phone and in the dark, and true."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from requant.evaluation.examples import Example
from requant.evaluation.results import compare
from requant.evaluation.survival import survival
from requant.figures import figure
from requant.report.night import Findings, StageRow, night_report
from requant.report.nights import NightEntry, nights_report
from requant.report.survival import change_words
from requant.store import StageRecord, Store
from tasks import tracking
from tests.support.browser import browser_window, keep
from tests.support.nights import make_night
from tests.support.scores import model_scores
from tests.support.tracked import children, track

MODELS = {
    "champion": (0.02, 0.0),
    "base": (0.0, 0.0),
    "quantized": (-0.05, -0.04),
    "adapted": (0.08, -0.05),
    "base_adapted": (0.1, -0.01),
    "merged": (0.1, -0.01),
    "requantized": (0.03, -0.09),
}
LEDGER = survival(
    compare(
        {
            name: model_scores(number, *change, range(64))
            for number, (name, change) in enumerate(MODELS.items())
        },
        print,
    )
)
EXAMPLE = Example(
    "What does this do? " + "unbroken" * 30,
    "It parses.",
    {"base": "It " + "parses and " * 40, "champion": "Parses.", "requantized": ""},
)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, StageRecord]]:
    store = Store(tmp_path_factory.mktemp("state"))
    return store, make_night(store)


@pytest.fixture(scope="module")
def report(night: tuple[Store, dict[str, StageRecord]]) -> Path:
    store, records = night
    scores: dict[str, Any] = {}
    for name, value in records["evaluate"].metrics.items():
        model, task, metric = name.split("/")
        cell = {"value": value, "stderr": None, "higher_is_better": metric == "acc"}
        scores.setdefault(model, {}).setdefault(task, {})[metric] = cell
    rows = [StageRow(stage, "done", record) for stage, record in records.items()]
    page = night_report("tiny", rows, Findings(scores, LEDGER, [EXAMPLE]))
    path = store.root / "report.html"
    path.write_text(page)
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[Any]:
    with browser_window() as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_whole_on_a_phone_and_in_the_dark(
    report: Path, window: Any, width: int, scheme: str
) -> None:
    said: list[str] = []
    asked: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("request", lambda request: asked.append(request.url))
    window.set_viewport_size({"width": width, "height": 1200})
    window.emulate_media(color_scheme=scheme)
    window.goto(report.as_uri())
    for summary in window.locator("summary").all():
        summary.click()
    keep(window, f"report-{scheme}-{width}")
    assert said == []
    assert asked == [report.as_uri()]
    # Wide tables and the picture scroll in their own frames, the page does not.
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = window.evaluate(
        "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    )
    assert abs(brightness(ink) - brightness(paper)) > 180
    assert (brightness(paper) < 60) == (scheme == "dark")


def brightness(color: str) -> float:
    channels = [int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(channels) / 3


def test_what_the_page_says_is_what_mlflow_says(
    report: Path, night: tuple[Store, dict[str, StageRecord]], window: Any
) -> None:
    store, records = night
    uri = tracking.prepare_database(f"sqlite:///{store.root}/mlflow.db", store.root)
    run = children(track(uri, store, records, "flow-1"))["evaluate"]
    window.set_viewport_size({"width": 1400, "height": 1200})
    window.goto(report.as_uri())
    heading = window.locator("h2", has_text="Scores")
    table = heading.locator("xpath=following::table[1]")
    models = table.locator("thead th.num").all_inner_texts()
    found = {}
    for row in table.locator("tbody tr").all():
        task, metric, *cells = row.locator("td").all_inner_texts()
        for model, cell in zip(models, cells, strict=True):
            found[f"{model}/{task}/{metric.split()[0]}"] = cell
    tracked = {name: value for name, value in run.data.metrics.items() if name.count("/") == 2}
    assert found == {name: figure(value) for name, value in tracked.items()}
    titles = window.locator("svg.ledger title").all_text_contents()
    for step in LEDGER.totals:
        words = f"{step.later}, {step.task}: {change_words(step)} nats a byte from {step.earlier}"
        assert words in titles


def test_the_page_of_all_nights_leads_to_each(report: Path, window: Any) -> None:
    page = report.with_name("nights.html")
    nights = [
        NightEntry("tiny 1", 0.0, "promoted", "", report.name, {"size": 0.4}),
        NightEntry("tiny 2", 86400.0, "refused", "old text lost", report.name, {"size": 0.5}),
    ]
    page.write_text(nights_report("tiny", nights))
    window.set_viewport_size({"width": 390, "height": 1200})
    window.goto(page.as_uri())
    keep(window, "many-nights")
    assert window.evaluate("document.documentElement.scrollWidth") <= 390
    window.get_by_role("link", name="tiny 2").click()
    window.get_by_role("heading", name="Which step cost what").wait_for()
