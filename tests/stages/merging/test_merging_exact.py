"""A merge is what peft computes in float32, rounded once."""

import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from requant.errors import ContractError
from requant.merging import plan_merge, write_plan
from requant.merging.stream import write_merged
from requant.merging.updates import LowRank, Update, merge_low_rank
from requant.methods import peft_types
from requant.models.headers import read_shard_header
from tests.support.adapters import save_adapter
from tests.support.merges import CASES, assert_rounded_once, lora, merge, tensors


@pytest.mark.parametrize("case", CASES)
def test_it_is_pefts_own_merge_rounded_once(
    case: str, base: Path, transposed_base: Path, tmp_path: Path
) -> None:
    base = transposed_base if "conv1d" in case else base
    reference = save_adapter(base, CASES[case], tmp_path / "adapter")
    merged = tensors(merge(base, tmp_path / "out", tmp_path / "adapter"))
    before = tensors(base)
    assert merged.keys() == before.keys()
    moved = 0
    for name, tensor in merged.items():
        assert tensor.dtype == before[name].dtype
        assert_rounded_once(tensor, reference[name])
        if torch.equal(reference[name].bfloat16(), before[name]):
            assert torch.equal(tensor, before[name])
        moved += not torch.equal(tensor, before[name])
    assert moved >= 1
    for file in base.glob("*.safetensors"):
        assert read_shard_header(file).raw == read_shard_header(tmp_path / "out" / file.name).raw
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_every_type_peft_has_is_merged_exactly_or_refused(base: Path, tmp_path: Path) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    shown = {config.peft_type.value for config in CASES.values()}
    assert shown == set(peft_types(merges=True))
    save_adapter(base, lora(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for kind in {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - shown:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": kind}))
        with pytest.raises(ContractError, match=r"cannot be merged|not among those requant has"):
            plan_merge(base, [tmp_path])


@pytest.mark.parametrize("case", ["ln_tuning", "ia3", "hra", "saved_beside_ia3", "conv1d_norms"])
def test_a_plan_can_be_written_twice(
    case: str, base: Path, transposed_base: Path, tmp_path: Path
) -> None:
    model = transposed_base if case == "conv1d_norms" else base
    norms = peft.LNTuningConfig(target_modules=["ln_1", "ln_f"])
    reference = save_adapter(model, CASES.get(case, norms), tmp_path / "adapter")
    plan = plan_merge(model, [tmp_path / "adapter"])
    for attempt in ("first", "second"):
        out = tmp_path / attempt
        out.mkdir()
        write_plan(plan, out)
        for name, tensor in tensors(out).items():
            if name in reference:
                assert_rounded_once(tensor, reference[name])
            else:
                assert_rounded_once(tensor, reference[f"transformer.{name}"])


def test_peft_saves_the_base_with_an_output_layer_and_it_is_passed_over(
    base: Path, tied_base: Path, tmp_path: Path
) -> None:
    config = peft.IA3Config(target_modules=["q_proj", "lm_head"], feedforward_modules=[])
    reference = save_adapter(base, config, tmp_path / "adapter")
    merged = tensors(merge(base, tmp_path / "out", tmp_path / "adapter"))
    assert_rounded_once(merged["lm_head.weight"], reference["lm_head.weight"])
    save_adapter(tied_base, config, tmp_path / "tied")
    with pytest.raises(ContractError, match=r"trained lm_head.weight, but .* are tied"):
        plan_merge(tied_base, [tmp_path / "tied"])


def save_shards(weights: dict[str, torch.Tensor], base: Path, cut: int) -> None:
    base.mkdir()
    for number, names in enumerate([list(weights)[:cut], list(weights)[cut:]], 1):
        file = base / f"model-{number:05}-of-00002.safetensors"
        part = {name: weights[name] for name in names}
        save_file(part, file, metadata={"format": "pt", "part": f"{number}"})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_rank_dtype_and_split(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    folder = tmp_path_factory.mktemp("any")
    draw, count = data.draw, data.draw(st.integers(1, 5), "tensors")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99), "seed"))
    floating = [torch.bfloat16, torch.float16, torch.float32]
    weights, updates, exact = {}, {}, {}
    for index in range(count):
        name = f"m{index}.weight"
        rows, columns = draw(st.integers(1, 700)), draw(st.integers(1, 700))
        weights[name] = torch.randn(rows, columns, generator=generator)
        if draw(st.booleans(), "updated"):
            weights[name] = weights[name].to(draw(st.sampled_from(floating)))
            rank, outputs = draw(st.integers(1, 9)), draw(st.sampled_from(["rows", "columns"]))
            left = torch.randn(rows, rank, generator=generator) * 0.02
            right = torch.randn(rank, columns, generator=generator)
            length = rows if outputs == "rows" else columns
            magnitude = torch.rand(length, generator=generator) + 0.5
            low = LowRank(left, right, 0.5, magnitude if draw(st.booleans()) else None, outputs)
            # Rows an adapter brings start from nothing.
            grown = draw(st.integers(0, 9)) if low.magnitude is None else 0
            left = torch.cat([left, torch.ones(grown, rank)])
            low = dataclasses.replace(low, left=left)
            start = torch.cat([weights[name].double(), torch.zeros(grown, columns)])
            whole = start + 0.5 * left.double() @ right.double()
            if low.magnitude is not None:
                axis = 1 if outputs == "rows" else 0
                unit = whole / whole.norm(dim=axis, keepdim=True)
                whole = unit * magnitude.double().unsqueeze(axis)
            exact[name] = whole
            updates[name] = Update(
                tuple(whole.shape),
                lambda low=low: lambda weight, part: merge_low_rank(weight, low, part),
                by_rows=low.magnitude is None or outputs == "rows",
            )
        else:
            weights[name] = weights[name].to(draw(st.sampled_from([*floating, torch.int8])))
    base, out = folder / "base", folder / "out"
    out.mkdir()
    save_shards(weights, base, draw(st.integers(0, count)))
    dtype = draw(st.sampled_from([None, torch.bfloat16, torch.float16, torch.float32]), "dtype")
    changes = write_merged(base, updates, out, dtype=dtype and str(dtype).removeprefix("torch."))
    merged = tensors(out)
    assert changes.keys() == updates.keys()
    for name, tensor in weights.items():
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        assert merged[name].dtype == kind
        if name in exact:
            assert_rounded_once(merged[name], exact[name])
        else:
            assert torch.equal(merged[name], tensor.to(kind))
    for file in base.iterdir():
        before, after = read_shard_header(file), read_shard_header(out / file.name)
        assert before.metadata == after.metadata
        assert list(before.tensors) == list(after.tensors)
        if all(weights[name].shape == merged[name].shape for name in before.tensors) and not dtype:
            assert before.raw == after.raw


def test_the_figures_are_those_of_the_formula(tmp_path: Path) -> None:
    weight = torch.randn(600, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"a.weight": weight, "b.weight": weight.clone()}, tmp_path / "model.safetensors")
    delta = torch.full((600, 500), 0.013)
    out = tmp_path / "out"
    out.mkdir()
    update = Update((600, 500), lambda: lambda block, rows: block + delta[rows])
    change = write_merged(tmp_path, {"a.weight": update}, out)["a.weight"]
    exact = weight.float() + delta
    error = (exact.bfloat16().float() - exact).norm()
    assert change.update**0.5 == pytest.approx(delta.norm().item(), rel=1e-3)
    assert change.rounding_ratio == pytest.approx((error / delta.norm()).item(), rel=1e-3)
    assert change.changed_share == pytest.approx((exact.bfloat16() != weight).float().mean().item())
