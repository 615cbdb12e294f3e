"""The adapter learns, the continuation resumes where it was killed."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from requant.config.merge import MergeFp16
from requant.config.training import ContinueTrain, TrainAdapter
from requant.errors import ContractError, TerminalError
from requant.models.provenance import read_provenance, weights_digest
from requant.stages import continue_train, merge_fp16, train_adapter
from requant.store import describe
from requant.training.adapter import check_no_experts, frozen_sizes, layer_sizes
from requant.training.blocks import find_blocks, select_trainable
from requant.training.checkpoints import last_checkpoint, mark_complete
from requant.training.fine_tune import check_gradients
from tests.stages.conftest import STEPS, KillAtStep5, SilentReporter, make_context
from tests.support.chain import child_process


def test_the_adapter_learns_and_names_no_path(trained) -> None:
    folder, metrics = trained
    assert metrics["loss_last"] < metrics["loss_first"]
    assert metrics["steps"] == 6
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    # peft keeps a set, whose order changes with the process.
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_adapter_records_what_it_was_trained_on(trained, tiny_base: Path, nf4: Path) -> None:
    recorded = read_provenance(trained[0])
    assert recorded == {"original": weights_digest(tiny_base), "trained_on": weights_digest(nf4)}


def test_the_same_seed_gives_the_same_bytes(nf4: Path, tiny_data: Path, tmp_path: Path) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    digests = set()
    for attempt in ("one", "two"):
        context = make_context(tmp_path / attempt)
        train_adapter.execute(section, context, base=nf4, data=tiny_data)
        digests.add(describe(context.out).digest)
    assert len(digests) == 1


def test_an_unknown_target_module_is_refused_before_training(
    nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = TrainAdapter(target_modules=("q_proj", "c_attn"), optimisation=STEPS)
    with pytest.raises(ContractError, match=r"c_attn not in this model.*down_proj"):
        train_adapter.execute(section, make_context(tmp_path), base=nf4, data=tiny_data)


def test_what_stays_frozen_is_named(nf4: Path, tiny_data: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    section = TrainAdapter(rank=4, target_modules=("q_proj", "down_proj"), optimisation=STEPS)
    metrics = train_adapter.execute(section, context, base=nf4, data=tiny_data)
    assert 0 < metrics["adapted_share"] < 1
    (said,) = [text for text in context.reporter.messages if "left frozen" in text]
    assert all(name in said for name in ("embed_tokens (65536)", "up_proj", "input_layernorm"))
    assert "q_proj" not in said


def test_frozen_experts_are_named() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    sizes = layer_sizes(model)
    assert sum(sizes.values()) == model.num_parameters()
    everything = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(ContractError, match=r"fused experts.*\[k_proj, o_proj, q_proj, v_proj\]"):
        check_no_experts(get_peft_model(model, everything))
    model = AutoModelForCausalLM.from_config(config)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    check_no_experts(adapted)
    frozen = frozen_sizes(adapted, sizes)
    assert next(iter(frozen)) == "mlp.experts"
    assert frozen["mlp.experts"] == 2 * 4 * 3 * 32 * 16
    assert "self_attn.q_proj" not in frozen


def test_a_tensor_without_gradient_is_refused() -> None:
    with_gradient = torch.nn.Parameter(torch.ones(2))
    with_gradient.grad = torch.ones(2)
    with pytest.raises(TerminalError, match=r"1 of 2 trainable tensors have none: b;"):
        check_gradients({"a": with_gradient, "b": torch.nn.Parameter(torch.ones(2))})
    with_gradient.grad = torch.zeros(2)
    check_gradients({"x.lora_A.default": with_gradient})
    with pytest.raises(TerminalError, match=r"exactly zero in 1 lora_B tensors: x.lora_B"):
        check_gradients({"x.lora_B.default": with_gradient})
    with_gradient.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(TerminalError, match="not finite in 1 of 1 tensors"):
        check_gradients({"a": with_gradient})


def test_only_the_top_layers_move(tiny_base: Path, tiny_data: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    section = ContinueTrain(scope="top_layers", layers=1, optimisation=STEPS)
    continue_train.execute(section, context, model=tiny_base, data=tiny_data)
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(context.out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_more_layers_than_there_are_is_refused(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = ContinueTrain(scope="top_layers", layers=5, optimisation=STEPS)
    with pytest.raises(ContractError, match="layers: got 5, the model has 2 blocks"):
        continue_train.execute(section, make_context(tmp_path), model=tiny_base, data=tiny_data)


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "bloom"])
def test_the_top_of_other_families_is_found(family: str) -> None:
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPTNeoXConfig, OPTConfig

    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config, norm = {
        "gpt2": (GPT2Config, "transformer.ln_f"),
        "neox": (GPTNeoXConfig, "gpt_neox.final_layer_norm"),
        "opt": (OPTConfig, "model.decoder.final_layer_norm"),
        "bloom": (BloomConfig, "transformer.ln_f"),
    }[family]
    model = AutoModelForCausalLM.from_config(config(**small))
    blocks, norms = find_blocks(model)
    assert [id(module) for module in norms] == [id(model.get_submodule(norm))]
    select_trainable(model, 1)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    top = [*blocks[2].parameters(), *norms[0].parameters()]
    assert trained == {id(parameter) for parameter in top}


def test_a_model_without_a_list_of_blocks_says_what_to_do() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=64, n_embd=32, n_head=2, n_layer=2)
    )
    model.config.n_layer = 5
    with pytest.raises(ContractError, match=r"no list of 5 blocks in GPT2.*h \(2\).*scope=full"):
        select_trainable(model, 1)


def checkpoint(work: Path, step: int) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"x" * 100)
    mark_complete(folder)
    return folder


def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    reporter = SilentReporter()
    older, newer = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    assert last_checkpoint(tmp_path, 6, reporter) == newer
    os.truncate(newer / "optimizer.pt", 40)
    assert last_checkpoint(tmp_path, 6, reporter) == older
    assert reporter.messages == [
        "checkpoint-4 is damaged (optimizer.pt has 40 bytes of 100): the one before is taken"
    ]
    assert not newer.exists()
    (older / "complete").write_bytes(b"")
    assert last_checkpoint(tmp_path, 6, reporter) is None
    assert reporter.messages[1:] == [
        "checkpoint-2 is damaged (its mark complete cannot be read): the one before is taken",
        "no whole checkpoint is left: training starts anew",
    ]


def continue_until_step_5(section: ContinueTrain, context, model: Path, data: Path) -> None:
    context = dataclasses.replace(context, reporter=KillAtStep5())
    continue_train.execute(section, context, model=model, data=data)


def test_a_killed_continuation_resumes_and_ends_with_the_same_bytes(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = ContinueTrain(optimisation=STEPS)
    whole, killed = make_context(tmp_path / "whole"), make_context(tmp_path / "killed")
    continue_train.execute(section, whole, model=tiny_base, data=tiny_data)

    code = child_process(continue_until_step_5, section, killed, tiny_base, tiny_data)
    assert code == -signal.SIGKILL
    silent = SilentReporter()
    assert last_checkpoint(killed.work, 6, silent).name == "checkpoint-4"
    assert last_checkpoint(killed.work, 4, silent).name == "checkpoint-2"
    assert silent.messages == []
    # What a kill in the middle of writing a checkpoint leaves.
    (killed.work / "checkpoint-9").mkdir()
    continue_train.execute(section, killed, model=tiny_base, data=tiny_data)
    assert "resuming from checkpoint-4" in killed.reporter.messages
    assert [step for step, _ in killed.reporter.points] == [1, 2, 3, 4, 5, 6]
    assert describe(killed.out).digest == describe(whole.out).digest


def test_an_adapter_is_trained_on_from_where_the_night_before_left_it(
    nf4: Path, tiny_data: Path, trained, tmp_path: Path
) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    first, second = make_context(tmp_path / "one"), make_context(tmp_path / "two")
    before = train_adapter.execute(section, first, base=nf4, data=tiny_data)
    after = train_adapter.execute(section, second, base=nf4, data=tiny_data, start=first.out)
    assert after["loss_first"] < before["loss_first"]
    old, new = (load_file(each.out / "adapter_model.safetensors") for each in (first, second))
    assert old.keys() == new.keys()
    # Nothing rounds twice: steps of nearly nothing leave every bit of the parent's adapter.
    still = STEPS.model_copy(update={"learning_rate": 1e-30, "max_steps": 1})
    same = section.model_copy(update={"optimisation": still, "dropout": 0.5})
    third = make_context(tmp_path / "three")
    train_adapter.execute(same, third, base=nf4, data=tiny_data, start=first.out)
    left = load_file(third.out / "adapter_model.safetensors")
    assert all(torch.equal(left[name], tensor) for name, tensor in old.items())
    assert json.loads((third.out / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    other = section.model_copy(update={"rank": 8})
    with pytest.raises(ContractError, match=r"another than tonight's \(r: 4 -> 8\); set train_ad"):
        train_adapter.execute(
            other, make_context(tmp_path / "x"), base=nf4, data=tiny_data, start=first.out
        )


def test_an_adapter_of_another_base_is_not_trained_on(
    tiny_base: Path, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    context = make_context(tmp_path / "one")
    train_adapter.execute(section, context, base=nf4, data=tiny_data)
    with pytest.raises(ContractError, match="was made from another trained on"):
        train_adapter.execute(
            section, make_context(tmp_path / "x"), base=tiny_base, data=tiny_data, start=context.out
        )


def test_adapters_below_the_new_one_act_and_stay_as_they_are(
    tiny_base: Path, nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Three nights stacked and merged compute what they computed unmerged: the merge proves it."""
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    nights: list[Path] = []
    losses = []
    for night in range(3):
        context = make_context(tmp_path / str(night))
        below = {f"stacked_{age}": folder for age, folder in enumerate(reversed(nights), 1)}
        before = {name: describe(folder).digest for name, folder in below.items()}
        metrics = train_adapter.execute(section, context, base=nf4, data=tiny_data, **below)
        assert before == {name: describe(folder).digest for name, folder in below.items()}
        assert not [path for path in context.out.iterdir() if path.is_dir()]
        losses.append(metrics["loss_first"])
        nights.append(context.out)
    assert losses == sorted(losses, reverse=True)
    merge = make_context(tmp_path / "merge")
    metrics = merge_fp16.execute(
        MergeFp16(parity_rows=4, trained_max_kl=0.5),
        merge,
        original=tiny_base,
        trained_on=nf4,
        adapter=nights[2],
        data=tiny_data,
        stacked_1=nights[1],
        stacked_2=nights[0],
    )
    assert metrics["parity_of_result"] == 1
    assert metrics["parity_kl"] < 1e-5


def test_a_stack_killed_in_training_resumes_as_a_whole(
    nf4: Path, tiny_data: Path, tmp_path: Path
) -> None:
    section = TrainAdapter(method="lora", rank=4, optimisation=STEPS)
    below = make_context(tmp_path / "below", seed=1)
    train_adapter.execute(section, below, base=nf4, data=tiny_data)
    whole = make_context(tmp_path / "whole")
    train_adapter.execute(section, whole, base=nf4, data=tiny_data, stacked_1=below.out)
    killed = dataclasses.replace(make_context(tmp_path / "killed"), reporter=KillAtStep5())
    exit_code = child_process(
        _train_on_top, section, killed, {"base": nf4, "data": tiny_data, "stacked_1": below.out}
    )
    assert exit_code == -signal.SIGKILL
    again = dataclasses.replace(killed, reporter=SilentReporter())
    train_adapter.execute(section, again, base=nf4, data=tiny_data, stacked_1=below.out)
    assert any("resuming from checkpoint-4" in line for line in again.reporter.messages)  # type: ignore[attr-defined]
    assert describe(again.out).digest == describe(whole.out).digest


def _train_on_top(section, context, inputs) -> None:  # type: ignore[no-untyped-def]
    train_adapter.execute(section, context, **inputs)
