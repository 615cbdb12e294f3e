"""What a training sees, and the loss it reports, on a tiny real model."""

import shutil
from pathlib import Path

import pytest
import torch

from requant.config.training import Optimisation
from requant.data.artifact import RULES_NAME
from requant.data.samples import encode_data
from requant.models.load import load_model
from requant.models.tokenizer import load_tokenizer
from requant.training.fine_tune import fine_tune
from tests.stages.conftest import make_context


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(3, 8, 1, 10, 4), (9, 1, 8, 4, 5), (10, 8, 1, 1, 2)],
)
def test_epochs_are_passes_over_the_rows(
    tiny_base: Path,
    tiny_data: Path,
    tmp_path: Path,
    rows: int,
    batch: int,
    accumulation: int,
    epochs: int,
    steps: int,
) -> None:
    data = first_rows(tiny_data, tmp_path / "data", rows)
    model = load_model(tiny_base, "cpu", trainable=True)
    seen = 0

    def count(module, args, kwargs) -> None:
        nonlocal seen
        seen += len(kwargs["input_ids"])

    model.model.register_forward_pre_hook(count, with_kwargs=True)
    section = Optimisation(epochs=epochs, batch_size=batch, gradient_accumulation=accumulation)
    metrics = fine_tune(
        model, load_tokenizer(tiny_base), data, section, make_context(tmp_path / "run")
    )

    assert seen == rows * epochs
    assert metrics["passes"] == epochs
    assert metrics["steps"] == steps


def test_the_loss_is_that_of_the_labelled_tokens(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    data = first_rows(tiny_data, tmp_path / "data", 4)
    tokenizer = load_tokenizer(tiny_base)
    model = load_model(tiny_base, "cpu", trainable=True)
    total = tokens = 0
    for sample in encode_data(tokenizer, data / "train.jsonl", 96, "cut").samples:
        ids, labels = (torch.tensor([sample[name]]) for name in ("input_ids", "labels"))
        labelled = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, labels=labels).loss.item() * labelled
        tokens += labelled

    section = Optimisation(max_steps=1, batch_size=4, max_length=96)
    metrics = fine_tune(model, tokenizer, data, section, make_context(tmp_path / "run"))

    assert metrics["loss_first"] == pytest.approx(total / tokens, rel=1e-4)


def first_rows(data: Path, folder: Path, rows: int) -> Path:
    """Make a folder whose train.jsonl holds the first rows of a dataset artifact."""
    folder.mkdir()
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:rows]))
    shutil.copy(data / RULES_NAME, folder)
    return folder
