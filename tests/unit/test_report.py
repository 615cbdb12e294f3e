"""The wording of figures, and a page that stands alone."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.evaluation.examples import Example
from requant.evaluation.survival import survival
from requant.figures import figure
from requant.report.drawing import CURVE_HEIGHT, CURVE_WIDTH, drawn_curve
from requant.report.headline import headline
from requant.report.night import ROUNDING, Findings, StageRow, night_report, score_table
from requant.report.nights import NightEntry, nights_report
from requant.statistics import verdict
from requant.store import StageRecord, Store
from requant.wording import duration
from tests.support.nights import EVERY, make_night

SCORES = {
    "base": {
        "choice": {
            "acc": {"value": 0.31, "stderr": 0.05, "higher_is_better": True},
            "of an old version": {"value": 1.0, "stderr": None},
        }
    },
    "requantized": {
        "choice": {"acc": {"value": 0.41, "stderr": 0.04, "higher_is_better": True}},
        "docstrings": {
            "word_perplexity": {"value": 61.2, "stderr": None, "higher_is_better": False},
            # No word in its name says so, and a page must not guess.
            "brier_score": {"value": 0.2, "stderr": None, "higher_is_better": False},
        },
    },
}
PAIRED = [
    {"earlier": "base", "later": "requantized", "task": "choice", "metric": "acc"}
    | {"higher_is_better": True}
    | {"mean": 0.1, "stderr": 0.02, "low": 0.06, "high": 0.14, "n": 64}
    | {"better": 9, "worse": 2, "rate": None}
]
TENSOR = {
    "tensor": "q_proj.weight",
    "update_norm": 0.25,
    "rounding_ratio": 0.0126,
    "kept_share": 0.9871,
    "changed_share": 1.0,
}
EXAMPLE = Example("What is <b>?", "a letter", {"requantized": "A letter.", "base": ""})
FOUND = Findings(SCORES, survival(PAIRED), [EXAMPLE], [TENSOR])


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRecord]:
    return make_night(Store(tmp_path_factory.mktemp("state")))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("prepare_base", "loss 3.9, 5.2M parameters"),
        ("prepare_data", "640 training rows, 64 held out"),
        ("quantize_base", "kl 0.02, 97.0% agree"),
        ("train_adapter", "loss 3.21 → 2.87"),
        ("merge_fp16", "kl 0.015, 98.6% agree"),
        ("continue_train", "loss 2.87 → 2.66"),
        ("requantize_gptq", "kl 0.03, 98.1% agree"),
        ("evaluate", "acc 0.41 (requantized, describe_choice)"),
    ],
)
def test_headline(night: dict[str, StageRecord], stage: str, text: str) -> None:
    assert headline(night[stage]) == text


def test_the_headline_of_an_evaluation_is_what_the_night_won(night: dict[str, StageRecord]) -> None:
    metrics = {
        "base/heldout_perplexity/byte_perplexity": 5.437,
        "requantized/heldout_perplexity/byte_perplexity": 5.247,
        "requantized/describe_choice/acc_norm": 0.25,
    }
    record = night["evaluate"].model_copy(update={"metrics": metrics})
    assert headline(record) == "byte perplexity 5.437 → 5.247"
    kept = record.model_copy(update={"metrics": {**metrics, "survived/heldout_perplexity": 0.934}})
    assert headline(kept) == "byte perplexity 5.437 → 5.247, 93% of the gain ships"


@pytest.mark.parametrize("stage", [*EVERY, "a_stage_of_tomorrow"])
def test_headline_makes_do_with_other_figures(night: dict[str, StageRecord], stage: str) -> None:
    bare = night["evaluate"].model_copy(update={"stage": stage, "metrics": {}})
    other = bare.model_copy(update={"metrics": {"b": 2.0, "a": math.inf, "c": 3.0}})
    assert headline(bare) == ""
    assert headline(other) == "a inf, b 2"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (640.0, "640"), (1.2e-5, "1.2e-05"), (2.8749, "2.875"), (14.2e9, "14.2B")],
)
def test_figure(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.26, "0.3 s"),
        (9.97, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("higher_is_better", "low", "high", "text"),
    [
        (True, 0.1, 0.2, "better"),
        (True, -0.2, -0.1, "worse"),
        (False, 0.1, 0.2, "worse"),
        (False, -0.2, -0.1, "better"),
        (True, -0.1, 0.2, "no clear change"),
        (False, 0.0, 0.2, "no clear change"),
    ],
)
def test_verdict_knows_which_way_is_better(
    higher_is_better: bool, low: float, high: float, text: str
) -> None:
    assert verdict(low, high, higher_is_better=higher_is_better) == text


def test_scores_keep_a_cell_for_each_model() -> None:
    rows = score_table(SCORES)
    assert [(row["task"], row["metric"], row["better"]) for row in rows] == [
        ("choice", "acc", "higher"),
        ("choice", "of an old version", ""),
        ("docstrings", "brier_score", "lower"),
        ("docstrings", "word_perplexity", "lower"),
    ]
    assert rows[3]["cells"] == [None, {"value": "61.2", "stderr": ""}]


def test_report_stands_alone(night: dict[str, StageRecord]) -> None:
    rows = [StageRow(stage, "done", record) for stage, record in night.items()]
    rows[-1] = StageRow("evaluate", "off")
    page = night_report("<script>tiny</script>", rows, FOUND)

    assert "<td>parity_kl</td>" in page
    assert "Each of the 1 merged tensors" in page
    assert "0.0126" in page
    assert "0.9871" in page
    assert "What rounding took" not in page
    assert "by the same code" not in page
    merged = night["merge_fp16"]
    took = dict.fromkeys(ROUNDING, 0.0246)
    rounded = merged.model_copy(update={"metrics": {**merged.metrics, **took}})
    told = night_report("x", [StageRow("merge_fp16", "done", rounded)])
    assert "What rounding took" in told
    assert "0.0246 ± 0.0246" in told
    twinless = merged.model_copy(update={"metrics": {**merged.metrics, "parity_of_result": 0.0}})
    told = night_report("x", [StageRow("merge_fp16", "done", twinless)], notes=["said <once>"])
    assert '<p class="note">said &lt;once&gt;</p>' in told
    assert "tonight's adapter merged whole, by the same code" in told
    assert not re.search(r"<script|<link|<img|https?://|@import|url\(", page)
    assert len(page) < 50_000
    assert "not measured" in page
    assert "base → requantized" in page
    assert "What is &lt;b&gt;?" in page
    # In the order of the chain, not of the alphabet.
    assert page.index("<pre>(nothing)</pre>") < page.index("<pre>A letter.</pre>")
    assert "optimisation.max_steps" in page
    assert 'class="box adapter"' in page
    assert "choice: no step cost anything beyond chance" in page
    assert '<td class="better">better</td>' in page
    assert page.count("<polyline") == 2
    assert page == night_report("<script>tiny</script>", rows, FOUND)


def test_report_of_a_night_that_got_nowhere_has_no_empty_tables() -> None:
    page = night_report("night", [StageRow("prepare_base", "failed")])
    assert page.count("<table") == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)),
        min_size=1,
        unique_by=lambda point: point[0],
    )
)
def test_curve_stays_in_its_box(curve: list[tuple[int, float]]) -> None:
    drawn = drawn_curve(tuple(sorted(curve)))
    points = [tuple(map(float, point.split(","))) for point in drawn["points"].split()]
    assert len(points) == len(curve)
    assert all(0 <= x <= CURVE_WIDTH and 0 <= y <= CURVE_HEIGHT for x, y in points)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_are_drawn_and_counted(
    night: dict[str, StageRecord], value: float
) -> None:
    curve = ((0, 1.0), (1, value), (2, 0.5))
    update = {"metrics": {"loss_first": value, "loss_last": value}, "curves": {"loss": curve}}
    broken = night["train_adapter"].model_copy(update=update)
    scores = {"base": {"t": {"acc": {"value": value, "stderr": value}}}}
    page = night_report("x", [StageRow("train_adapter", "done", broken)], Findings(scores))
    assert "(1 points are not finite)" in page
    assert not re.search(r'points="[^"]*(nan|inf)', page)
    nothing = broken.model_copy(update={"curves": {"loss": ((0, value), (1, value))}})
    assert "<polyline" not in night_report("x", [StageRow("train_adapter", "done", nothing)])


def test_many_nights_stand_on_one_page_the_last_first() -> None:
    nights = [
        NightEntry("tiny 1", 0.0, "promoted", "", "a/report.html", {"size": 0.4}),
        NightEntry("tiny 2", 86400.0, "refused", "old <text> lost", "b/report.html", {"size": 0.5}),
    ]
    page = nights_report("tiny", nights, ["x: is no summary of a night"])
    assert page.index("1970-01-02 00:00") < page.index("1970-01-01 00:00")
    assert '<a href="b/report.html">tiny 2</a>' in page
    assert "old &lt;text&gt; lost" in page
    assert "x: is no summary of a night" in page
    assert page.count("<polyline") == 1
    assert not re.search(r"<script|<link|<img|https?://|@import|url\(", page)
    assert "No night of this line has ended yet" in nights_report("tiny", [])
