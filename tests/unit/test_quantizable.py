"""What GPTQ cannot quantize, and what several GPUs cannot share: all of it named at once."""

from typing import Any

import pytest
from pydantic import ValidationError

from requant.config.quantizing import QuantizeBase, RequantizeGptq
from requant.quantization.quantizable import Layers, quantizing_problems
from requant.quantization.settings import GptqSettings, settings_of

# The shapes of Qwen1.5-14B-Chat: 13,696 columns are 107 groups of 128.
BLOCKS = 40
WIDE = Layers(
    features={
        f"model.layers.{block}.{name}": columns
        for block in range(BLOCKS)
        for name, columns in (
            ("self_attn.q_proj", 5120),
            ("self_attn.o_proj", 5120),
            ("mlp.up_proj", 5120),
            ("mlp.down_proj", 13696),
        )
    },
    split=tuple(
        f"model.layers.{block}.{name}"
        for block in range(BLOCKS)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    ),
)


def test_groups_that_gpus_cannot_share_are_named_with_a_size_that_they_can() -> None:
    assert quantizing_problems(WIDE, 128) == []
    assert quantizing_problems(WIDE, 64, tensor_parallel=2) == []
    assert quantizing_problems(WIDE, -1, tensor_parallel=2) == []
    [(field, text)] = quantizing_problems(WIDE, 128, tensor_parallel=2)
    assert field == "tensor_parallel"
    assert text == (
        "2 GPUs cannot share the groups of 128 of in_features=13696 (107 groups) of "
        "model.layers.*.mlp.down_proj (40); valid group_size for 2: 16, 32, 64"
    )
    [(_, text)] = quantizing_problems(WIDE, 128, tensor_parallel=3)
    assert "in_features=5120 (40 groups) of model.layers.*.self_attn.o_proj (40)" in text
    assert "in_features=13696 (107 groups)" in text
    assert text.endswith("for 3: none, serve this model on one GPU (tensor_parallel=1)")


def test_every_layer_that_a_group_does_not_divide_is_counted() -> None:
    narrow = Layers({f"h.{block}.{name}": 96 for block in range(12) for name in ("a", "b")})
    [(field, text)] = quantizing_problems(narrow, 64)
    assert field == "group_size"
    assert text == (
        "64 does not divide in_features=96 of h.*.a (12), h.*.b (12); valid for this model: 16, 32"
    )
    renamed = Layers(narrow.features, renamed=("h.0.a",))
    assert [field for field, _ in quantizing_problems(renamed, 64)] == ["enabled", "group_size"]


def test_two_orders_of_the_columns_are_refused() -> None:
    assert RequantizeGptq(desc_act=True).desc_act
    with pytest.raises(ValidationError, match="act_group_aware: true with desc_act=true"):
        RequantizeGptq(desc_act=True, act_group_aware=True)


@pytest.mark.parametrize("section", [QuantizeBase, RequantizeGptq])
def test_both_stages_round_by_the_same_settings(section: Any) -> None:
    assert settings_of(section()) == settings_of(RequantizeGptq())
    chosen: dict[str, Any] = {"bits": 3, "group_size": 16, "mse": 2.0, "gptaq_alpha": 0.25}
    assert settings_of(section(**chosen)) == GptqSettings(
        **{**vars(settings_of(section())), **chosen}
    )
