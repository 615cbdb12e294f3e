"""The ledger of a night: which step cost what, and what of a gain survives to the end."""

from collections.abc import Mapping

import pytest

from requant.evaluation.results import compare
from requant.evaluation.survival import Survival, figures, in_words, survival
from requant.report.survival import survival_markdown, survival_page, survival_table
from tests.support.scores import model_scores

NIGHT = {
    "base": (0.0, 0.0),
    "quantized": (-0.05, -0.04),
    "adapted": (0.08, -0.05),
    "base_adapted": (0.10, -0.01),
    "merged": (0.10, -0.01),
    "continued": (0.12, -0.01),
    "requantized": (0.03, -0.09),
}
"""Model -> what it is better by than the base on new and on old text, in nats a byte."""


def ledger_of(models: Mapping[str, tuple[float, float]]) -> Survival:
    scores = {
        name: model_scores(number, new, old, range(128))
        for number, (name, (new, old)) in enumerate(models.items())
    }
    said: list[str] = []
    found = survival(compare(scores, said.append))
    assert not said
    return found


def test_each_step_says_what_it_changed_and_the_costliest_is_named() -> None:
    ledger = ledger_of(NIGHT)
    assert ledger.tasks == ("heldout_perplexity", "old_perplexity")
    new = [step for step in ledger.steps if step.task == "heldout_perplexity"]
    assert [step.name for step in new] == [
        "quantize_base",
        "train_adapter",
        "the original under the adapter",
        "merge_fp16",
        "continue_train",
        "requantize_gptq",
    ]
    wanted = [-0.05, 0.13, 0.02, 0.0, 0.02, -0.09]
    assert [step.change.mean for step in new] == pytest.approx(wanted, abs=0.01)
    for step, change in zip(new, wanted, strict=True):
        assert step.change.low is not None
        assert step.change.high is not None
        assert step.change.low < change < step.change.high
        assert step.better + step.worse == 128
    worst = ledger.costliest("heldout_perplexity")
    assert worst is not None
    assert worst.name == "requantize_gptq"
    assert worst.worse > 120
    # The steps add up to the whole way: the same documents all along.
    whole = [step for step in ledger.totals if step.task == "heldout_perplexity"][-1]
    assert sum(step.change.mean for step in new) == pytest.approx(whole.change.mean)


def test_what_survives_is_a_share_of_the_best_gain_in_16_bit() -> None:
    ledger = ledger_of(NIGHT)
    assert ledger.survived("heldout_perplexity") == pytest.approx(0.25, abs=0.06)
    # Nothing was won on old text, so nothing can be kept of it.
    assert ledger.survived("old_perplexity") is None
    new, old = in_words(ledger)
    assert new.startswith("heldout_perplexity: requantize_gptq cost most, -0.0")
    assert new.endswith("% of the gain in 16 bit is in what ships")
    assert "documents worse and" in new
    assert old.startswith("old_perplexity: requantize_gptq cost most, -0.0")
    assert "gain" not in old
    metrics = figures(ledger)
    assert metrics["requantized/old_perplexity/step_change"] == pytest.approx(-0.08, abs=0.01)
    assert metrics["survived/heldout_perplexity"] == ledger.survived("heldout_perplexity")
    assert "survived/old_perplexity" not in metrics


def test_noise_is_not_called_a_cost() -> None:
    ledger = ledger_of({"base": (0.0, 0.0), "requantized": (0.0, 0.0)})
    assert ledger.costliest("old_perplexity") is None
    assert in_words(ledger)[1] == "old_perplexity: no step cost anything beyond chance"
    assert [step.name for step in ledger.steps] == ["up to requantize_gptq"] * 2


def test_a_stage_that_was_off_is_no_part_of_the_next_step() -> None:
    models = {name: NIGHT[name] for name in NIGHT if name != "continued"}
    names = [step.name for step in ledger_of(models).steps if step.task == "old_perplexity"]
    assert names[-2:] == ["merge_fp16", "requantize_gptq"]


def test_a_gain_that_became_a_loss_is_said_in_words() -> None:
    lost = {"base": (0.0, 0.0), "merged": (0.1, 0.0), "requantized": (-0.1, 0.0)}
    (new, _) = in_words(ledger_of(lost))
    assert new.endswith("; nothing of the gain in 16 bit is in what ships")


def test_the_champion_and_the_anchor_are_in_the_table_and_no_steps() -> None:
    models = {"champion": (0.05, 0.0), "base": (0.0, 0.0), "requantized": (0.06, 0.0)}
    ledger = ledger_of(models)
    table = survival_table(ledger)
    assert table[0] == ["step", *(f"{task} (nats a byte)" for task in ledger.tasks)]
    assert [row[0] for row in table[1:]] == ["up to requantize_gptq", "against the champion"]
    assert len(ledger.steps) == 2


def test_the_picture_stays_in_its_frame_and_is_in_the_order_of_the_chain() -> None:
    page = survival_page(ledger_of(NIGHT))
    assert page is not None
    assert [model for model, _ in page["models"]] == list(NIGHT)
    for line in page["lines"]:
        assert len(line["marks"]) == len(NIGHT)
        for mark in line["marks"]:
            assert 0 <= float(mark.top) <= float(mark.y) <= float(mark.bottom) <= page["height"]
            assert 0 <= float(mark.x) <= page["width"]
    ledger = ledger_of(NIGHT)
    told = survival_markdown(survival_table(ledger), in_words(ledger))
    assert "| requantize_gptq |" in told
    assert survival_page(survival([])) is None
    assert survival_markdown(survival_table(survival([])), in_words(survival([]))) == ""


def test_of_a_night_on_the_grid_the_one_step_is_the_stage_that_made_it() -> None:
    models = {name: NIGHT[name] for name in ("base", "quantized", "requantized")}
    ledger = ledger_of(models)
    new = [step for step in ledger.steps if step.task == "heldout_perplexity"]
    assert [step.name for step in new] == ["quantize_base", "train_on_grid"]
    assert {step.name for step in ledger.totals} == {"quantize_base", "up to train_on_grid"}
    # Nothing was won in 16 bit that could be lost.
    assert ledger.survived("heldout_perplexity") is None
