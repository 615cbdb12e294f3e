"""How GPTQ rounds: the settings of both stages that quantize, and what GPTQModel calls them.

Every choice here leaves the layout alone: bits and group size decide how large a model becomes,
the others only which of its numbers are written.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from requant.config.quantizing import GptqFields


@dataclass(frozen=True)
class GptqSettings:
    """What decides the rounding, apart from the text."""

    bits: int = 4
    """Per weight: 2, 3, 4 or 8."""
    group_size: int = 128
    """Weights along in_features that share a scale; -1 for all of them."""
    desc_act: bool = False
    """Round the columns of all groups by decreasing activation."""
    act_group_aware: bool = True
    """Round by decreasing activation, whole groups at a time (arXiv:2505.14638)."""
    symmetric: bool = True
    """No zero point."""
    mse: float = 0.0
    """Exponent p of the error sum |q - w|^p that each group's scale is searched for; 0 takes the
    largest weight."""
    gptaq_alpha: float = 0.0
    """Share of the input's own error that is corrected (GPTAQ, arXiv:2504.02692); 0 is GPTQ."""
    damp_percent: float = 0.05
    """Added to the Hessian's diagonal, as a share of its mean."""
    damp_auto_increment: float = 0.01
    """How much more is added at each further try, where the Hessian is not positive definite."""
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Name of a layer, and the settings it takes otherwise; the first of a name counts."""
    round_to_nearest: bool = False
    """Ignore the Hessian: the reference that calibration has to beat."""


def settings_of(fields: GptqFields) -> GptqSettings:
    """Take the settings out of a section of the configuration."""
    same = {
        name: value
        for name, value in fields.model_dump(exclude={"overrides"}).items()
        if name in GptqSettings.__dataclass_fields__
    }
    return GptqSettings(
        **same,
        overrides=tuple(
            (name, override.chosen()) for override in fields.overrides for name in override.modules
        ),
    )


def dynamic_rules(settings: GptqSettings, left_out: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Spell what single layers take otherwise as GPTQModel's `dynamic`, whose first match counts.

    Args:
        settings: See `GptqSettings`.
        left_out: As `gptqmodel_settings`.
    """
    rules: dict[str, dict[str, Any]] = {f"-:{pattern}": {} for pattern in left_out}
    # Candidates may take the order of groups away from what the overrides were written for.
    ordered = settings.desc_act or settings.group_size == -1
    for name, fields in settings.overrides:
        chosen = {
            field: value
            for field, value in fields.items()
            if field != "act_group_aware" or not ordered
        }
        rules.setdefault(f"+:.*\\.{re.escape(name)}$", chosen)
    return rules


def gptqmodel_settings(settings: GptqSettings, left_out: Sequence[str]) -> dict[str, Any]:
    """Spell settings as keyword arguments of GPTQModel's QuantizeConfig, which must be imported.

    Args:
        settings: See `GptqSettings`.
        left_out: Patterns of layers that stay as they are.
    """
    from gptqmodel.quantization.config import Fallback, GPTAQConfig

    whole = settings.group_size == -1
    found: dict[str, Any] = {
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": settings.desc_act,
        # One group has no order of groups.
        "act_group_aware": settings.act_group_aware and not settings.desc_act and not whole,
        "sym": settings.symmetric,
        "mse": settings.mse,
        "damp_percent": settings.damp_percent,
        "damp_auto_increment": settings.damp_auto_increment,
        "dynamic": dynamic_rules(settings, left_out) or None,
    }
    if settings.gptaq_alpha:
        found["gptaq"] = GPTAQConfig(alpha=settings.gptaq_alpha)
    if settings.round_to_nearest:
        # More tokens than any layer sees: GPTQModel then rounds without the Hessian.
        found["fallback"] = Fallback(threshold=2**62)
    return found
