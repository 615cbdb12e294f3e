"""The original's files: what is written, what is left, what cannot be read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from requant.adapters.patterns import is_target
from requant.errors import ContractError, ParityError
from requant.merging import plan_merge
from tests.support.adapters import save_adapter
from tests.support.merges import CASES, assert_rounded_once, changed, key, lora, merge, tensors


def test_layers_the_model_does_not_load_are_left_as_they_are(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    extra = {"model.layers.2.self_attn.q_proj.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
    save_file(extra, folder / "extra.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(extra, "extra.safetensors")
    index.write_text(json.dumps(content))
    save_adapter(base, lora(), tmp_path / "adapter")
    merged = tensors(merge(folder, tmp_path / "out", tmp_path / "adapter"))
    assert torch.equal(merged[next(iter(extra))], next(iter(extra.values())))


def test_what_is_no_language_model_is_named(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, lora(), adapter)
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {}}))
    with pytest.raises(ContractError, match="is a model of several modalities"):
        plan_merge(folder, [adapter])
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_A" in name)
    save_file({**weights, name: weights[name][:, :, None, None].contiguous()}, path)
    with pytest.raises(ContractError, match="is a convolution; requant merges linear layers"):
        plan_merge(base, [adapter])


def test_conv1d_is_known_by_the_files_not_by_the_flag(
    transposed_base: Path, tmp_path: Path
) -> None:
    """peft leaves fan_in_fan_out false where one target of several is Conv1D."""
    reference = save_adapter(transposed_base, CASES["conv1d"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": False}))
    merged = tensors(merge(transposed_base, tmp_path / "out", tmp_path / "adapter"))
    for name, tensor in merged.items():
        assert_rounded_once(tensor, reference[name])


def test_only_the_weights_the_model_is_loaded_from_are_written(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    save_file({"mtp.layers.0.q_proj.weight": torch.zeros(4, 4)}, folder / "mtp.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["mtp.layers.0.q_proj.weight"] = "mtp.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.gguf"):
        (folder / name).write_bytes(b"the same weights again")
    save_adapter(base, lora(), tmp_path / "adapter")
    out = merge(folder, tmp_path / "out", tmp_path / "adapter")
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in base.iterdir()} | {"mtp.safetensors"}


def test_nan_and_an_update_that_vanishes_are_refused(base: Path, tmp_path: Path) -> None:
    adapter, name = tmp_path / "adapter", key("self_attn.q_proj", "lora_B.weight")
    save_adapter(base, lora(), adapter)

    def spoil(state) -> None:
        state[name][3, 1] = float("nan")

    changed(adapter, spoil)
    with pytest.raises(ParityError, match=r"layers.0.self_attn.q_proj.weight is not finite"):
        merge(base, tmp_path / "out", adapter)
    changed(adapter, lambda state: [t.zero_() for n, t in state.items() if "lora_B" in n])
    with pytest.raises(ParityError, match="the update is zero everywhere"):
        merge(base, tmp_path / "out", adapter)
    changed(adapter, lambda state: [t.fill_(1e-12) for n, t in state.items() if "lora_B" in n])
    with pytest.raises(ParityError, match="rounding took all of the update"):
        merge(base, tmp_path / "out", adapter)


def test_targets_are_read_as_peft_reads_them(base: Path) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    model = AutoModelForCausalLM.from_pretrained(base)
    names = [name for name, _ in model.named_modules() if name]
    for case in ("lora", "regex", "some_layers", "excluded", "modules_to_save"):
        config = CASES[case]
        ours = [name for name in names if is_target(config.to_dict(), name)]
        assert ours == [
            name
            for name in names
            if check_target_module_exists(config, name) is True
            or hasattr(check_target_module_exists(config, name), "group")
        ]
