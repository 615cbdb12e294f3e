"""Adapter methods: what each can be trained on, and whether it becomes weights.

    method           trains on                    merges
    lora, rslora     16 bit, nf4, int8, gptq      yes
    dora             16 bit, nf4 (QDoRA)          yes
    prefix_tuning    16 bit, nf4, int8            no: tokens in front of the text, not weights
    prompt_tuning    16 bit, nf4, int8, gptq      no, as above
    p_tuning         16 bit, nf4, int8, gptq      no, as above

Beside those that `train_adapter` trains stand the ones that `requant merge` takes from elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One method of peft's."""

    peft_type: str
    """What adapter_config.json calls it; a variant has that of what it varies."""
    paper: str
    merges: bool = True
    """Whether it is a change of weights, shown to merge to peft's own float32 result."""
    trained: bool = False
    """Whether `train_adapter.method` offers it."""
    refuses: tuple[str, ...] = ()
    """Quantizations of the base that peft does not train it on."""
    prompts: bool = False
    """Whether it trains tokens in front of the text, of which the base has no layer."""


METHODS: Mapping[str, Method] = {
    "lora": Method("LORA", "arXiv:2106.09685", trained=True),
    "rslora": Method("LORA", "arXiv:2312.03732", trained=True),
    "dora": Method("LORA", "arXiv:2402.09353", trained=True, refuses=("gptq", "int8")),
    # On a GPTQ base peft 0.21 looks for a GPU in the device map, and finds none on a CPU.
    "prefix_tuning": Method(
        "PREFIX_TUNING",
        "arXiv:2101.00190",
        merges=False,
        trained=True,
        refuses=("gptq",),
        prompts=True,
    ),
    "prompt_tuning": Method(
        "PROMPT_TUNING", "arXiv:2104.08691", merges=False, trained=True, prompts=True
    ),
    "p_tuning": Method("P_TUNING", "arXiv:2103.10385", merges=False, trained=True, prompts=True),
    "trainable_tokens": Method("TRAINABLE_TOKENS", "peft: rows of an embedding alone"),
    "adalora": Method("ADALORA", "arXiv:2303.10512"),
    "ia3": Method("IA3", "arXiv:2205.05638"),
    "vera": Method("VERA", "arXiv:2310.11454"),
    "road": Method("ROAD", "arXiv:2409.00119"),
    "oft": Method("OFT", "arXiv:2306.07280"),
    "boft": Method("BOFT", "arXiv:2311.06243"),
    "miss": Method("MISS", "arXiv:2409.15371"),
    "randlora": Method("RANDLORA", "arXiv:2502.00987"),
    "fourierft": Method("FOURIERFT", "arXiv:2405.03003"),
    "ln_tuning": Method("LN_TUNING", "arXiv:2312.11420"),
    "loha": Method("LOHA", "arXiv:2108.06098"),
    "lokr": Method("LOKR", "arXiv:2309.14859"),
    "hra": Method("HRA", "arXiv:2405.17484"),
    "adaption_prompt": Method("ADAPTION_PROMPT", "arXiv:2303.16199", merges=False),
    "cartridge": Method("CARTRIDGE", "arXiv:2506.06266", merges=False),
    "cpt": Method("CPT", "arXiv:2410.17222", merges=False),
    "multitask_prompt_tuning": Method("MULTITASK_PROMPT_TUNING", "arXiv:2303.02861", merges=False),
}


def peft_types(*, merges: bool) -> tuple[str, ...]:
    """Return peft's names of the methods that merge, or of those known not to."""
    return tuple(dict.fromkeys(row.peft_type for row in METHODS.values() if row.merges == merges))
