"""Several adapters, shares of one, and a merge that is interrupted."""

import os
import signal
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from requant.merging import Mix, plan_merge, write_plan
from tests.support.adapters import save_adapter
from tests.support.chain import child_process
from tests.support.merges import assert_rounded_once, lora, merge, tensors


def test_several_adapters_add_up(base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    ends = [save_adapter(base, lora(), folder, seed=s) for s, folder in enumerate(folders)]
    before = tensors(base)
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix("cat", (0.7, 0.4))))
    for name, tensor in merged.items():
        start = before[name].double()
        deltas = [end[name].double() - start for end in ends]
        assert_rounded_once(tensor, start + 0.7 * deltas[0] + 0.4 * deltas[1])


def test_cat_is_pefts_cat(base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        save_adapter(base, lora(), folder, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type="cat")
    model.set_adapter("both")
    reference = model.merge_and_unload().state_dict()
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix("cat", (0.7, 0.4))))
    for name, tensor in merged.items():
        assert_rounded_once(tensor, reference[name])


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruning_keeps_its_share_and_repeats_itself(
    method: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(base, lora(), tmp_path / "a")
    save_adapter(base, lora(), tmp_path / "b", seed=2)
    mix = Mix(method, (1.0, 1.0), density=0.25, seed=7)
    folders = (tmp_path / "a", tmp_path / "b")
    first = tensors(merge(base, tmp_path / "one", *folders, mix=mix))
    again = tensors(merge(base, tmp_path / "two", *folders, mix=mix))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name, before = "model.layers.0.mlp.down_proj.weight", tensors(base)
    kept = (first[name] != before[name]).float().mean().item()
    # Of two updates a quarter each: 7 of 16 where they overlap by chance.
    assert 0.25 < kept < 0.5


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_pruning_is_pefts_on_whole_updates(method: str, base: Path, tmp_path: Path) -> None:
    from peft.utils import merge_utils

    folders = (tmp_path / "a", tmp_path / "b")
    ends = [save_adapter(base, lora(), folder, seed=s) for s, folder in enumerate(folders)]
    merged = tensors(merge(base, tmp_path / "out", *folders, mix=Mix(method, (0.7, 0.4), 0.5)))
    before = tensors(base)
    for name in (name for name in merged if "down_proj" in name):
        start = before[name].float()
        combine = getattr(merge_utils, method)
        delta = combine([end[name] - start for end in ends], torch.tensor([0.7, 0.4]), 0.5)
        # Updates of nearly equal size may be ranked either way.
        close = (merged[name].float() - (start + delta)).abs() < 1e-3 * start.abs() + 1e-3
        assert close.float().mean() > 0.999


def test_a_share_of_the_update_lies_between(base: Path, tmp_path: Path) -> None:
    end = save_adapter(base, lora(use_dora=True), tmp_path / "adapter")
    before = tensors(base)
    half = tensors(merge(base, tmp_path / "half", tmp_path / "adapter", scale=0.5))
    for name, tensor in half.items():
        assert_rounded_once(tensor, (before[name].double() + end[name].double()) / 2)


def merge_until(shards: int, base: Path, adapter: Path, out: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == shards:
            os.kill(os.getpid(), signal.SIGKILL)

    out.mkdir()
    write_plan(plan_merge(base, [adapter]), out, on_shard=stop)


def test_a_merge_killed_at_any_shard_leaves_nothing_that_loads(base: Path, tmp_path: Path) -> None:
    save_adapter(base, lora(), tmp_path / "adapter")
    shards = len(list(base.glob("*.safetensors")))
    assert shards == 3
    for shard in range(1, shards + 1):
        out = tmp_path / f"out{shard}"
        code = child_process(merge_until, shard, base, tmp_path / "adapter", out)
        assert code == -signal.SIGKILL
        assert not (out / "config.json").exists()
        with pytest.raises(ValueError, match=r"config.json"):
            AutoModelForCausalLM.from_pretrained(out)
