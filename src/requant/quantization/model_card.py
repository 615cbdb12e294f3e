"""The model card of a quantized model: lineage, data, figures and the licence of its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from requant.figures import figure
from requant.quantization.fidelity import Quantization

CORRECTED = (
    " The LoRA in `eora/` is part of it, and in all figures below: peft loads it on top "
    "(`PeftModel.from_pretrained(model, 'eora')`), vLLM as a LoRA module."
)


@dataclass(frozen=True)
class Made:
    """From what a quantized model was made, and how; digests are hexadecimal sha256."""

    origin: Mapping[str, str]
    """Where the base came from: see `requant.models.origin`."""
    weights: str
    """Of the 16-bit model, see `requant.models.provenance.weights_digest`."""
    training: str
    """Of train.jsonl."""
    heldout: str
    """Of heldout.jsonl."""
    calibration: str
    """Of the texts."""
    training_rows: int
    calibration_texts: int
    calibration_tokens: int
    settings: Mapping[str, Any]
    """`quantization_config` of its config.json."""


def model_card(made: Made, measured: Quantization) -> str:
    """Return README.md: front matter as the Hugging Face hub reads it, and the figures in words.

    It holds nothing of the machine: the same model has the same card.
    """
    return "\n".join(
        [
            *front_matter(made.origin, made.settings),
            *_body(made, measured),
            *_figures(measured),
        ]
    )


def front_matter(origin: Mapping[str, str], settings: Mapping[str, Any]) -> list[str]:
    """Write the fields as YAML; `requant.models.origin` lets no quote or backslash into a value."""
    base = []
    if "repo" in origin:
        base = [f'base_model: "{origin["repo"]}"', "base_model_relation: quantized"]
    return [
        "---",
        *base,
        *(f'{name}: "{value}"' for name, value in sorted(origin.items()) if "license" in name),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [requant, gptq, {settings['bits']}-bit]",
        "---",
        "",
    ]


def base_lines(origin: Mapping[str, str]) -> list[str]:
    """Say which base a model comes from, and under what licence; see `requant.models.origin`."""
    base = (
        f"[{origin['repo']}](https://huggingface.co/{origin['repo']}) at `{origin['revision']}`"
        if {"repo", "revision"} <= origin.keys()
        else "a folder; nothing names where it was published"
    )
    licence = (
        f"`{origin['license']}`"
        + (f" ({origin['license_name']})" if "license_name" in origin else "")
        + (f", {origin['license_link']}" if "license_link" in origin else "")
        + ", as its card says"
        if "license" in origin
        else "not stated by it: ask whoever published the base before you pass this model on"
    )
    return [f"- Base: {base}.", f"- Licence of the base: {licence}."]


def grid_words(settings: Mapping[str, Any]) -> str:
    """Describe bits and groups, of `quantization_config`."""
    bits, group = settings["bits"], settings["group_size"]
    return (
        f"{bits} bit in {'one group a row' if group < 0 else f'groups of {group}'}, "
        f"{'symmetric' if settings['sym'] else 'asymmetric'}"
        + (", act order" if settings["desc_act"] else "")
    )


def _body(made: Made, measured: Quantization) -> list[str]:
    origin, settings = made.origin, made.settings
    bits, grid = settings["bits"], grid_words(settings)
    left = measured.left
    return [
        f"# A {bits}-bit model, retrained and quantized by requant",
        "",
        f"GPTQ ({grid}), `checkpoint_format: {settings['checkpoint_format']}`: transformers, "
        "GPTQModel and vLLM load it."
        + (CORRECTED if measured.correction_bits_per_weight else "")
        + " Tokenizer, chat template and generation configuration are the "
        "16-bit model's.",
        "",
        "## Lineage",
        "",
        *base_lines(origin),
        f"- Retrained 16-bit model it was quantized from: weights sha256 `{made.weights}`.",
        "",
        "## Data",
        "",
        f"- Training: {made.training_rows} rows, sha256 `{made.training}`.",
        f"- Calibration: {made.calibration_texts} texts, {made.calibration_tokens} tokens, sha256 "
        f"`{made.calibration}`; which ones is in `calibration.json`.",
        f"- Measured on held-out rows that neither training nor calibration saw, sha256 "
        f"`{made.heldout}`.",
        "",
        f"{left.share:.1%} of the blocks' parameters stayed in 16 bit"
        + (f": {', '.join(left.sizes)}." if left.sizes else "."),
        "",
    ]


def _figures(measured: Quantization) -> list[str]:
    found = measured.as_metrics()
    rows = [
        ("KL to the 16-bit model, nats per token", "kl", "kl_error"),
        ("99th percentile of the tokens' KL", "kl_p99", ""),
        ("same most likely token", "agreement", "agreement_error"),
        ("ln(perplexity, quantized over 16 bit)", "ln_ppl_ratio", "ln_ppl_ratio_error"),
        ("KL of rounding to nearest on the same grid", "rtn_kl", ""),
        ("bits a weight of the quantized layers", "bits_per_weight", ""),
        ("bits a weight of the LoRA in eora/", "correction_bits_per_weight", ""),
        ("size of the weights, over 16 bit", "size_ratio", ""),
    ]
    tokens = measured.outputs.tokens
    return [
        "## Against the 16-bit model",
        "",
        f"On {tokens} tokens of held-out answers, read by transformers; the error is the standard "
        "error over texts, of pairs.",
        "",
        "| | | error |",
        "| --- | --- | --- |",
        *(
            _row(title, found[name], found.get(error))
            for title, name, error in rows
            if name in found
        ),
        "",
        "The weights that lost most, as a share of their norm:",
        "",
        *(f"- `{name}` {error:.1%}" for name, error in measured.weights.worst()),
        "",
    ]


def _row(title: str, value: float, error: float | None) -> str:
    return f"| {title} | {figure(value)} | {'' if error is None else figure(error)} |"
