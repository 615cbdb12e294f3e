"""Families of models that are not Llama: quantized as they should be, or refused before a night."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from requant.config.quantizing import QuantizeBase, RequantizeGptq
from requant.errors import ConfigError, ContractError
from requant.models.headers import logical_shapes, read_headers
from requant.models.load import load_model
from requant.stages import quantize_base, requantize_gptq
from tests.stages.conftest import make_context
from tests.support.chain import micro_config
from tests.support.looked import looked_here

SIZES = {"vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def family(name: str) -> Any:
    import transformers as hf

    rest: dict[str, Any] = {"intermediate_size": 128, "max_position_embeddings": 128}
    moe = {**SIZES, **rest, "num_key_value_heads": 1, "num_experts_per_tok": 2}
    return {
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=1024, n_embd=64, n_layer=2, n_head=2, n_positions=128
        ),
        "neox": lambda: hf.GPTNeoXConfig(**SIZES, **rest),
        "mixtral": lambda: hf.MixtralConfig(**moe, num_local_experts=4),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(
            **moe, head_dim=32, moe_intermediate_size=64, num_experts=4
        ),
    }[name]()


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make, once each, an untrained base of a family with the tokenizer of `tiny_base`."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            import torch
            from transformers import AutoModelForCausalLM

            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(family(name), dtype=torch.bfloat16)
            # Experts of the usual 0.02 would not be seen in an output.
            for parameter in model.parameters():
                parameter.data *= 3
            model.save_pretrained(made[name])
            for path in tiny_base.iterdir():
                if path.name.startswith(("token", "chat", "special")):
                    shutil.copyfile(path, made[name] / path.name)
        return made[name]

    return base


def night(base: Path, state: Path, **sections: Any) -> list[str]:
    source = {"kind": "folder", "path": str(base)}
    return looked_here(micro_config(state, prepare_base={"source": source}, **sections))


def test_what_does_not_fit_gpt2_is_known_before_the_night(bases: Any, tmp_path: Path) -> None:
    base = bases("gpt2")
    found = night(base, tmp_path, continue_train={"optimisation": {"max_steps": 1}})
    expected = [
        "quantize_base.enabled: 8 of its layers are Conv1D (transformer.h.0.attn.c_attn, ",
        "requantize_gptq.enabled: 8 of its layers are Conv1D",
        "train_adapter.target_modules: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_p",
        "continue_train.optimisation.max_length: got 512, the base has 128 learned positions",
    ]
    assert len(found) == len(expected), found
    for line, text in zip(found, expected, strict=True):
        assert line.startswith(text)
    # The advice as it stands there.
    steps = {"max_steps": 1, "max_length": 96}
    advised: dict[str, Any] = {
        "quantize_base": {"enabled": False},
        "requantize_gptq": {"enabled": False},
        "train_adapter": {"target_modules": ["all-linear"], "optimisation": steps},
    }
    assert night(base, tmp_path, **advised) == []


def test_a_base_without_a_template_is_known_although_its_rows_are_plain_text(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "number {number}"}}\n' for number in range(30)))
    data = {"source": {"kind": "files", "train": [str(texts)]}}
    (found,) = night(base, tmp_path / "state", prepare_data=data)
    assert "has no chat template, which quantize_base and requantize_gptq need" in found
    # Rows of messages need it too: that is not said a second time.
    rows = texts.with_name("rows.jsonl")
    rows.write_text(
        "".join(f'{{"prompt": "What?", "response": "answer {number}"}}\n' for number in range(30))
    )
    data = {"source": {"kind": "files", "train": [str(rows)]}}
    assert night(base, tmp_path / "state", prepare_data=data) == [found]
    off = {"quantize_base": {"enabled": False}, "requantize_gptq": {"enabled": False}}
    (found,) = night(base, tmp_path / "state", prepare_data=data, **off)
    assert found.startswith("prepare_data.source: the base has no chat template")


def test_experts_that_auto_round_cannot_round_are_known_before_the_night(
    bases: Any, tiny_data: Path, tmp_path: Path
) -> None:
    base = bases("mixtral")
    alone = {"group_size": 32, "method": "auto_round"}
    said = "method: auto_round would round the experts of model.layers.0.mlp.experts, model.layers"
    for sections, place in (
        (alone, "requantize_gptq."),
        ({"group_size": 32, "candidates": [{}, alone]}, "requantize_gptq.candidates.1."),
    ):
        found = night(base, tmp_path / "state", requantize_gptq=sections)
        assert [line for line in found if line.startswith(place + said)], found
    section = RequantizeGptq.model_validate({**alone, "calibration_rows": 8})
    with pytest.raises(ConfigError, match=said):
        requantize_gptq.execute(section, make_context(tmp_path), model=base, data=tiny_data)


def test_rotary_positions_have_no_end(bases: Any, tmp_path: Path) -> None:
    found = night(
        bases("neox"),
        tmp_path,
        train_adapter={
            "target_modules": ["query_key_value"],
            "optimisation": {"max_steps": 1, "max_length": 4096},
        },
    )
    assert found == []


def test_files_that_name_a_tensor_otherwise_than_the_network_are_quantized(
    bases: Any, tiny_data: Path, tmp_path: Path
) -> None:
    base, context = bases("neox"), make_context(tmp_path)
    section = RequantizeGptq(
        group_size=64, calibration_rows=8, calibration_length=64, fidelity_rows=4
    )
    metrics = requantize_gptq.execute(section, context, model=base, data=tiny_data)
    assert metrics["unquantized_share"] == 0
    assert "embed_out.weight" in read_headers(context.out)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_stay_as_they_are_and_are_named(
    name: str, bases: Any, tiny_data: Path, tmp_path: Path
) -> None:
    import torch

    base, context = bases(name), make_context(tmp_path)
    section = QuantizeBase(method="gptq", group_size=64, calibration_rows=8)
    metrics = quantize_base.execute(section, context, base=base, data=tiny_data)
    messages = context.reporter.messages  # type: ignore[attr-defined]
    (said,) = [text for text in messages if text.startswith("left in 16 bit")]
    assert "experts.*." in said
    experts = sum(
        shape[0] * shape[1] for key, shape in logical_shapes(base, {}).items() if ".experts." in key
    )
    assert f"({experts // 3})" in said
    assert metrics["unquantized_share"] > 0.7
    # In this very process GPTQModel had replaced transformers' classes.
    states = torch.randn(1, 5, 64)
    out = [
        load_model(folder, "cpu").model.layers[1].mlp(states)  # type: ignore[attr-defined]
        for folder in (base, context.out)
    ]
    assert torch.equal(*(item[0] if isinstance(item, tuple) else item for item in out))


def test_a_model_that_lacks_a_tensor_is_never_loaded(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ContractError, match=r"lack 1 tensors of Qwen3.*layers\.1\.mlp\.up_proj"):
        load_model(folder, "cpu")
