"""Adapters of every kind, and a merge of them with its exact result."""

from pathlib import Path

import peft
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from requant.adapters.folder import PREFIX
from requant.merging import plan_merge, scaled, write_plan

TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **fields})


CASES = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "patterns": lora(
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        alpha_pattern={"layers.0.self_attn.v_proj": 9},
    ),
    "modules_to_save": lora(modules_to_save=["embed_tokens", "lm_head", "input_layernorm"]),
    "embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "dora_embedding": lora(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "output_layer": lora(target_modules=["q_proj", "lm_head"]),
    "all_biases": lora(bias="all"),
    "lora_bias": lora(target_modules=["q_proj", "v_proj"], lora_bias=True),
    "regex": lora(target_modules=r".*layers\.0.*(q_proj|up_proj)"),
    "some_layers": lora(layers_to_transform=[1]),
    "excluded": lora(exclude_modules=["layers.0.self_attn.q_proj"]),
    "conv1d": lora(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
    "dora_conv1d": lora(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True),
    "tokens": lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [9, 3]}),
    "output_tokens": lora(
        trainable_token_indices={"embed_tokens": [9, 3], "lm_head": [4]}, target_modules=["q_proj"]
    ),
    "trainable_tokens": peft.TrainableTokensConfig(
        token_indices=[9, 3], target_modules=["embed_tokens"]
    ),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=4, total_step=9, target_modules=TARGETS),
    "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=TARGETS),
    "road": peft.RoadConfig(group_size=32, target_modules=TARGETS),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS),
    "boft": peft.BOFTConfig(boft_block_size=8, target_modules=TARGETS),
    "miss": peft.MissConfig(r=4, target_modules=TARGETS),
    "randlora": peft.RandLoraConfig(r=4, target_modules=TARGETS),
    "fourierft": peft.FourierFTConfig(n_frequency=50, target_modules=TARGETS),
    "ln_tuning": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "loha": peft.LoHaConfig(r=4, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=4, target_modules=TARGETS),
    "hra": peft.HRAConfig(r=4, target_modules=TARGETS),
    "saved_beside_ia3": peft.IA3Config(
        target_modules=TARGETS, feedforward_modules=["down_proj"], modules_to_save=["lm_head"]
    ),
}


def merge(base: Path, out: Path, *adapters: Path, scale: float = 1.0, **how) -> Path:
    out.mkdir(exist_ok=True)
    write_plan(scaled(plan_merge(base, adapters, **how), scale), out)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_rounded_once(merged: torch.Tensor, exact: torch.Tensor) -> None:
    """Half a unit in the last place of the dtype, and float32's own noise."""
    eps = torch.finfo(merged.dtype).eps
    exact = exact.double()
    bound = exact.abs() * eps / 2 * (1 + 1e-3) + exact.abs().max() * 1e-6
    assert ((merged.double() - exact).abs() <= bound).all()


def changed(adapter: Path, change) -> None:
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def key(module: str, leaf: str) -> str:
    return f"{PREFIX}model.layers.0.{module}.{leaf}"


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(input_ids=torch.arange(20).unsqueeze(0)).logits
