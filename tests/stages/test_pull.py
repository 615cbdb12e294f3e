"""A pull towards what a training starts from: what is near it, and that nothing else changes."""

import dataclasses
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from requant.config.training import Optimisation, Pull, TrainAdapter
from requant.errors import TerminalError
from requant.execution.launcher import Launch, in_own_process
from requant.execution.stage import StageContext
from requant.methods import METHODS
from requant.stages import train_adapter
from requant.store import describe
from requant.training.fine_tune import _callback
from requant.training.pull_terms import first_updates, head_of, update_distance
from tests.stages.conftest import STEPS, KillAtStep5, make_context
from tests.support.chain import child_process

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "provenance.json")
FREE = 1e-30
"""A weight that measures and does not pull."""


def section(pull: tuple[str, float] | None, **fields: Any) -> TrainAdapter:
    given = None if pull is None else Pull.model_validate({"kind": pull[0], "weight": pull[1]})
    return TrainAdapter(**{"rank": 4, "alpha": 8, "optimisation": STEPS, "pull": given, **fields})


def train(folder: Path, of: TrainAdapter, **inputs: Path) -> tuple[StageContext, dict[str, float]]:
    context = make_context(folder)
    return context, train_adapter.execute(of, context, **inputs)


def curve(context: StageContext, name: str) -> list[float]:
    points = context.reporter.points  # type: ignore[attr-defined]
    return [values[name] for _, values in points if name in values]


@pytest.fixture(scope="module")
def parent(nf4: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter of a night before, far from its base."""
    folder = tmp_path_factory.mktemp("parent")
    context, metrics = train(folder, section(("kl", FREE)), base=nf4, data=tiny_data)
    assert metrics["pull_kl_last"] > 0.003
    return context.out


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("kl", "lora"),
        ("kl", "dora"),
        ("l2", "rslora"),
        ("l2", "dora"),
        ("kl", "prefix_tuning"),
        ("kl", "prompt_tuning"),
        ("kl", "p_tuning"),
    ],
)
def test_a_strong_pull_holds_a_model_where_it_began(
    kind: str, method: str, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    inputs = {"base": nf4, "data": tiny_data}
    prompts = METHODS[method].prompts
    # Few steps move a prompt little.
    steps = STEPS.model_copy(update={"learning_rate": 0.05 if prompts else 5e-3})
    fields = {"method": method, "dropout": 0.1, "optimisation": steps}
    free, far = train(tmp_path / "free", section((kind, FREE), **fields), **inputs)
    held, near = train(tmp_path / "held", section((kind, 1e4), **fields), **inputs)
    name = f"pull_{kind}"
    first, *later = curve(free, name)
    # A new adapter begins at its start, whatever falls to dropout; a prompt is random numbers.
    assert (first > 1e-4) == prompts
    assert prompts or first == pytest.approx(0, abs=1e-6 if kind == "kl" else 0)
    assert len(later) == 5
    assert min(later) > 1e-4
    assert (far[f"{name}_first"], far[f"{name}_last"]) == (first, later[-1])
    assert near[f"{name}_last"] < far[f"{name}_last"] / 10
    # The loss that is told is that of the text, whatever the pull weighs.
    assert near["loss_first"] == pytest.approx(far["loss_first"], rel=1e-5)
    names = [{path.name for path in each.out.iterdir()} for each in (free, held)]
    assert names[0] == names[1] == {*ADAPTER_FILES}


@pytest.mark.parametrize("kind", ["kl", "l2"])
def test_what_pulls_by_nothing_changes_nothing(
    kind: str, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The second pass draws no random number, so dropout falls as it does without it."""
    inputs = {"base": nf4, "data": tiny_data}
    plain, _ = train(tmp_path / "plain", section(None, dropout=0.3), **inputs)
    measured, _ = train(tmp_path / "kl", section((kind, FREE), dropout=0.3), **inputs)
    assert curve(measured, "loss") == pytest.approx(curve(plain, "loss"), rel=1e-5)
    assert not curve(plain, f"pull_{kind}")


@pytest.mark.parametrize("kind", ["kl", "l2"])
def test_an_adapter_that_is_trained_on_is_held_near_its_parent(
    kind: str, parent: Path, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    inputs = {"base": nf4, "data": tiny_data}
    anew, far = train(tmp_path / "anew", section((kind, FREE)), **inputs)
    on, near = train(tmp_path / "on", section((kind, 1e4)), **inputs, start=parent)
    # As far as one night goes, the parent is from the original.
    assert curve(on, f"pull_{kind}")[0] < far[f"pull_{kind}_last"] / 100
    assert near[f"pull_{kind}_last"] < far[f"pull_{kind}_last"] / 3
    # It is near the parent, which knows more than the original.
    assert curve(on, "loss")[0] < curve(anew, "loss")[0] - 0.02


def test_a_stack_is_held_near_the_adapters_below(
    parent: Path, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    inputs = {"base": nf4, "data": tiny_data, "stacked_1": parent}
    _, plain = train(tmp_path / "plain", section(None), **inputs)
    context, metrics = train(tmp_path / "held", section(("kl", FREE)), **inputs)
    assert curve(context, "pull_kl")[0] == pytest.approx(0, abs=1e-6)
    assert metrics["loss_last"] == pytest.approx(plain["loss_last"], rel=1e-5)


def train_until_step_5(context: StageContext, of: TrainAdapter, inputs: dict[str, Path]) -> None:
    context = dataclasses.replace(context, reporter=KillAtStep5())
    train_adapter.execute(of, context, **inputs)


@pytest.mark.parametrize(
    ("kind", "below"), [("kl", None), ("kl", "start"), ("l2", "start"), ("kl", "stacked_1")]
)
def test_a_killed_training_is_pulled_to_the_same_start_when_it_goes_on(
    kind: str, below: str | None, parent: Path, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    inputs = {"base": nf4, "data": tiny_data} | ({} if below is None else {below: parent})
    of = section((kind, 2.0), dropout=0.1)
    whole, told = train(tmp_path / "whole", of, **inputs)
    killed = make_context(tmp_path / "killed")
    assert child_process(train_until_step_5, killed, of, inputs) == -signal.SIGKILL
    again = train_adapter.execute(of, killed, **inputs)
    assert "resuming from checkpoint-4" in killed.reporter.messages  # type: ignore[attr-defined]
    assert describe(killed.out).digest == describe(whole.out).digest
    assert curve(killed, f"pull_{kind}") == curve(whole, f"pull_{kind}")
    assert again == told


@pytest.mark.parametrize("kind", ["kl", "l2"])
def test_a_step_is_the_same_in_one_batch_or_four(
    kind: str, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    steps = STEPS.model_dump() | {"learning_rate": 1e-3}
    found = []
    for batch in (4, 1):
        divided = steps | {"batch_size": batch, "gradient_accumulation": 4 // batch}
        divided["gradient_checkpointing"] = batch == 1
        of = section((kind, 5.0), optimisation=Optimisation(**divided))
        context, _ = train(tmp_path / str(batch), of, base=nf4, data=tiny_data)
        found.append([curve(context, name) for name in (f"pull_{kind}", "loss", "grad_norm")])
    for one, four in zip(*found, strict=True):
        assert four == pytest.approx(one, rel=0.01, abs=1e-6)


def test_two_ranks_are_pulled_as_one(nf4: Path, tiny_data: Path, tmp_path: Path) -> None:
    of = section(("kl", 5.0), optimisation=STEPS.model_copy(update={"learning_rate": 1e-3}))
    inputs = {"base": nf4, "data": tiny_data}
    one, _ = train(tmp_path / "one", of, **inputs)
    two = make_context(tmp_path / "two")
    launch = Launch(log=tmp_path / "stage.log", ranks=2)
    in_own_process(train_adapter.STAGE, launch)(of, two, **inputs)
    for name in ("pull_kl", "loss"):
        assert curve(two, name) == pytest.approx(curve(one, name), rel=0.01, abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_the_distance_is_that_of_the_updates(method: str) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 5))
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["0", "1"],
        use_dora=method == "dora",
        use_rslora=method == "rslora",
    )
    model = get_peft_model(layers, config)
    shift(model, 0.5)
    started = first_updates(model)
    assert update_distance(started).item() == 0
    shift(model, 0.1)
    scale = 6 / 4 if method != "rslora" else 6 / math.sqrt(4)
    expected = 0.0
    for update in started:
        layer = update.layer
        now = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        expected += (scale * (now - update.up @ update.down)).square().sum().item()
        if method == "dora":
            moved = layer.lora_magnitude_vector["default"].weight - update.magnitude
            expected += moved.square().sum().item()
    assert len(started) == 2
    assert update_distance(started).item() == pytest.approx(expected, rel=1e-4)


def shift(model: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "cohere"])
def test_the_divergence_is_that_of_the_models_own_logits(family: str) -> None:
    """Granite divides its logits, Cohere multiplies them, Gemma 2 caps them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    own = {"granite": {"logits_scaling": 0.25}, "cohere": {"logit_scale": 3.0}}.get(family, {})
    config = AutoConfig.for_model(family, **small, **own)
    if family == "gemma2":
        config.final_logit_softcapping = 0.5
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    before, after = (torch.randint(1, 64, (1, 12)) for _ in range(2))
    states = [model.base_model(ids).last_hidden_state[0].detach() for ids in (before, after)]
    p, q = (model(ids).logits[0].float().log_softmax(-1) for ids in (before, after))
    expected = (p.exp() * (p - q)).sum(-1)
    assert expected.mean() > 0.01
    found = head_of(model).divergences(*states)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_prompt_is_not_held_near_random_numbers() -> None:
    with pytest.raises(
        ValueError,
        match=r"pull.kind='l2' with method='p_tuning': a prompt begins as random.*set pull.kind=kl",
    ):
        section(("l2", 0.1), method="p_tuning")


def test_a_night_without_a_pull_keeps_its_key() -> None:
    assert "pull" not in section(None).key_fields()
    assert section(("kl", 0.1)).key_fields()["pull"] == {"kind": "kl", "weight": 0.1}


def test_a_pull_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    watch: Any = _callback(make_context(tmp_path), lambda: None, ("loss", "pull_kl"))
    state = SimpleNamespace(global_step=3, max_steps=6)
    with pytest.raises(TerminalError, match=r"pull_kl: nan at step 3; lower .* or pull.weight"):
        watch.on_log(None, state, None, logs={"loss": 1.0, "pull_kl": math.nan})
