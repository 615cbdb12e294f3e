"""The model card of a model that was trained on the grid of its GPTQ base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from requant.figures import figure
from requant.quantization.model_card import base_lines, front_matter, grid_words


@dataclass(frozen=True)
class OnGrid:
    """From what it was made, and what was measured; digests are hexadecimal sha256."""

    origin: Mapping[str, str]
    """Where the base came from: see `requant.models.origin`."""
    weights: str
    """Of the GPTQ base, see `requant.models.provenance.weights_digest`."""
    training: str
    """Of train.jsonl."""
    heldout: str
    """Of heldout.jsonl."""
    training_rows: int
    settings: Mapping[str, Any]
    """`quantization_config` of its config.json."""
    metrics: Mapping[str, float]
    """Of the stage train_on_grid."""


def grid_card(made: OnGrid) -> str:
    """Return README.md; it holds nothing of the machine: the same model has the same card."""
    settings, found = made.settings, made.metrics
    bits = settings["bits"]
    rows = [
        ("held-out loss of the GPTQ base, nats per token", "heldout_loss_before"),
        ("held-out loss of this model", "heldout_loss_saved"),
        ("KL of this model to the one that was trained", "trained_kl"),
        ("codes that moved, of those that may", "changed_share"),
        ("codes that would have left the range, and stayed", "clamped"),
        ("KL to the 16-bit base, nats per token (what was learned is in it)", "kl"),
        ("size of the weights, over 16 bit", "size_ratio"),
    ]
    return "\n".join(
        [
            *front_matter(made.origin, settings),
            f"# A {bits}-bit model, retrained on its own grid by requant",
            "",
            f"GPTQ ({grid_words(settings)}), `checkpoint_format: {settings['checkpoint_format']}`: "
            "transformers, GPTQModel and vLLM load it. The night moved integer codes by one step "
            "at most (LoTA-QAF, arXiv:2505.18724); scales, zero points and all else are the "
            "base's. `requant undo` gives that base back, byte for byte.",
            "",
            "## Lineage",
            "",
            *base_lines(made.origin),
            f"- GPTQ base it was trained on: weights sha256 `{made.weights}`.",
            "",
            "## Data",
            "",
            f"- Training: {made.training_rows} rows, sha256 `{made.training}`.",
            f"- Measured on held-out rows that training did not see, sha256 `{made.heldout}`.",
            "",
            "## Measured",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {title} | {figure(found[name])} |" for title, name in rows),
            "",
        ]
    )
