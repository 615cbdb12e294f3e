"""train_on_grid: what ships is what was trained, to the bit, and a night is undone, to the byte."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from requant.cli import app
from requant.comparison.batches import batches_for
from requant.comparison.divergence import token_log_probs
from requant.comparison.folders import folder_loss
from requant.config.quantizing import QuantizeBase
from requant.config.training import TrainOnGrid
from requant.errors import ArtifactError, ConfigError, ContractError
from requant.models.load import load_model
from requant.quantization.dequantize import read_quantized
from requant.quantization.grid_delta import DELTA, digests, read_delta, redo, undo
from requant.stages import quantize_base, train_on_grid
from requant.store import describe
from requant.training.on_grid import put_on_grid
from tests.stages.conftest import STEPS, SilentReporter, make_context
from tests.support.gptq_layout import codes_of

TARGETS = ("q_proj", "v_proj", "down_proj")
Night = tuple[Path, Path, dict[str, float]]
"""The GPTQ base, what shipped, and the figures of the stage."""


def section(**fields: Any) -> TrainOnGrid:
    return TrainOnGrid.model_validate(
        {
            "enabled": True,
            "rank": 4,
            # Every product counts: many codes are pushed out of the range.
            "threshold": 0.0,
            "target_modules": TARGETS,
            "optimisation": STEPS.model_dump() | {"learning_rate": 0.3},
            "heldout_rows": 4,
            # Names and digests weigh as much as in a model a thousand times as large.
            "delta_max_share": 0.5,
            **fields,
        }
    )


def trained(folder: Path, base: Path, original: Path, data: Path, **fields: Any) -> Night:
    context = make_context(folder)
    metrics = train_on_grid.execute(
        section(**fields), context, base=base, original=original, data=data
    )
    return base, context.out, metrics


@pytest.fixture(scope="module")
def gptq(tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = make_context(tmp_path_factory.mktemp("gptq"))
    section = QuantizeBase(method="gptq", group_size=64, calibration_rows=8)
    quantize_base.execute(section, context, base=tiny_base, data=tiny_data)
    return context.out


@pytest.fixture(scope="module")
def night(
    gptq: Path, tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Night:
    return trained(tmp_path_factory.mktemp("night"), gptq, tiny_base, tiny_data)


def test_what_ships_is_what_was_trained_to_the_bit(night: Night, tiny_data: Path) -> None:
    base, out, metrics = night
    assert (metrics["trained_kl"], metrics["trained_difference"]) == (0, 0)
    batches = batches_for(base, tiny_data / "heldout.jsonl", 4)
    assert metrics["heldout_loss_before"] == pytest.approx(folder_loss(base, batches, "cpu"))
    assert metrics["heldout_loss_saved"] == folder_loss(out, batches, "cpu")
    # The same layers once more, given the numbers of the delta.
    network = load_model(base, "cpu", dtype=torch.float32)
    layers = put_on_grid(network, read_quantized(base), TARGETS, 4, 0, seed=1)
    _, moves = read_delta(out / DELTA)
    for name, (a, b) in moves.numbers_of(read_quantized(base).headers):
        layers[name].latent_a.data, layers[name].latent_b.data = a, b
    shipped = load_model(out, "cpu", dtype=torch.float32)
    ours, theirs = (list(token_log_probs(model, batches)) for model in (network, shipped))
    assert all(map(torch.equal, ours, theirs))


def test_codes_differ_by_one_step_and_nothing_else_differs(night: Night) -> None:
    base, out, metrics = night
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    moved = clamped = 0
    for name, tensor in before.items():
        if name.endswith(".qweight") and name.split(".")[-2] in TARGETS:
            ours, theirs = (codes_of(it[name].T.numpy(), 4) for it in (before, after))
            assert set(np.unique(ours - theirs)) <= {-1, 0, 1}
            moved += int((ours != theirs).sum())
        else:
            assert torch.equal(tensor, after[name])
    assert moved / metrics["movable"] == metrics["changed_share"]
    record, _ = read_delta(out / DELTA)
    clamped = record.clamped
    assert (record.changed, record.weights) == (moved, metrics["movable"])
    assert clamped == metrics["clamped"] > 0
    others = {path.name for path in base.iterdir()} - {"model.safetensors"}
    assert "provenance.json" in others
    for name in others:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    card = (out / "README.md").read_text()
    assert f"and stayed | {clamped} |" in card
    assert "`requant undo` gives that base back" in card


def test_undo_gives_every_sha256_back_and_redo_what_shipped(night: Night, tmp_path: Path) -> None:
    base, out, _ = night
    assert read_delta(out / DELTA)[0].clamped > 0
    said = CliRunner().invoke(app, ["undo", str(out), "--out", str(tmp_path / "undone")])
    assert said.exit_code == 0, said.output
    assert f"{len(digests(base))} files, each with its sha256" in " ".join(said.output.split())
    assert digests(tmp_path / "undone") == digests(base)
    assert not (tmp_path / "undone" / DELTA).exists()
    # A delta is enough to ship the night elsewhere, where its base is.
    words = ["undo", str(base), "--delta", str(out / DELTA), "--redo", "--out"]
    assert CliRunner().invoke(app, [*words, str(tmp_path / "redone")]).exit_code == 0
    redone = tmp_path / "redone"
    assert digests(redone) == digests(out)
    undo(redone, redone / DELTA, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(base)


def test_a_model_or_delta_that_does_not_belong_is_refused(night: Night, tmp_path: Path) -> None:
    base, out, _ = night
    delta = out / DELTA
    wanted = digests(out)["model.safetensors"]
    found = digests(base)["model.safetensors"]
    shutil.copyfile(out / "README.md", tmp_path / "README.md")
    other = shutil.copytree(base, tmp_path / "other")
    shutil.copyfile(out / "README.md", other / "README.md")
    with pytest.raises(
        ContractError,
        match=rf"{other}/model.safetensors: sha256 {found}, expected {wanted} as {delta} records "
        "it; give the model that shipped with this delta",
    ):
        undo(other, delta, tmp_path / "out")
    with pytest.raises(ContractError, match=r"README.md: no such file, expected .* give the model"):
        undo(base, delta, tmp_path / "out")
    with pytest.raises(ContractError, match=r"model.safetensors: sha256 .* give its base with"):
        redo(out, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"--out .*other: holds something already"):
        undo(out, delta, other)
    with pytest.raises(ConfigError, match=r"has no delta.json; give the folder delta of a model"):
        undo(out, base, tmp_path / "out")

    bent = shutil.copytree(delta, tmp_path / "bent")
    octets = bytearray((bent / "ternary.safetensors").read_bytes())
    octets[-1] ^= 1
    (bent / "ternary.safetensors").write_bytes(octets)
    with pytest.raises(ArtifactError, match=r"ternary.safetensors: sha256 .*copy the delta anew"):
        undo(out, bent, tmp_path / "out")
    record = json.loads((delta / "delta.json").read_text())
    for change in (
        {"base": {"../stolen": "0" * 64}},
        {"shipped": {"config.json": "short"}},
        {"rank": 0},
        {"bits": 5},
    ):
        (bent / "delta.json").write_text(json.dumps(record | change))
        with pytest.raises(ArtifactError, match=rf"delta.json: {next(iter(change))}.*copy the"):
            undo(out, bent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_loss_falls(gptq: Path, tiny_base: Path, tiny_data: Path, tmp_path: Path) -> None:
    steps = STEPS.model_dump() | {"max_steps": 30, "learning_rate": 0.2, "checkpoint_steps": 100}
    # The rows of one batch: every step sees the same text, so what it learns shows in the loss.
    rows = (tiny_data / "train.jsonl").read_text().splitlines(keepends=True)
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "train.jsonl").write_text("".join(rows[: STEPS.batch_size]))
    fields = {"optimisation": steps, "rank": 8, "threshold": 0.5}
    every = TrainOnGrid.model_fields["target_modules"].default
    _, _, metrics = trained(
        tmp_path / "night", gptq, tiny_base, data, target_modules=every, **fields
    )
    assert metrics["loss_last"] < metrics["loss_first"] - 0.05
    assert 0 < metrics["changed_share"] < 0.5
    assert metrics["trained_kl"] == 0


def test_what_cannot_fit_is_refused_before_the_training(
    gptq: Path, nf4: Path, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def refused(folder: str, error: type[Exception], text: str, base: Path, **fields: Any) -> None:
        with pytest.raises(error, match=text):
            trained(tmp_path / folder, base, tiny_base, tiny_data, **fields)

    text = r"train_on_grid.rank: 4 makes a delta of .*% of the model, limit train_on_grid.delta_max"
    refused("large", ConfigError, text, gptq, delta_max_share=0.001)
    text = (
        r"train_on_grid.target_modules: wq not quantized in this model; its quantized layers are:"
    )
    refused("names", ContractError, text, gptq, target_modules=("q_proj", "wq"))
    refused("nf4", ContractError, "is nf4, which has no integer codes to move", nf4)


class StopAtStep5(SilentReporter):
    def progress(self, done: int, total: int, unit: str) -> None:
        if (done, unit) == (5, "steps"):
            raise KeyboardInterrupt


def test_a_stopped_training_goes_on_and_ends_with_the_same_bytes(
    night: Night, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    base, whole, _ = night
    context = make_context(tmp_path)
    inputs = {"base": base, "original": tiny_base, "data": tiny_data}
    with pytest.raises(KeyboardInterrupt):
        stopped = dataclasses.replace(context, reporter=StopAtStep5())
        train_on_grid.execute(section(), stopped, **inputs)
    train_on_grid.execute(section(), context, **inputs)
    assert "resuming from checkpoint-4" in context.reporter.messages  # type: ignore[attr-defined]
    assert describe(context.out) == describe(whole)
