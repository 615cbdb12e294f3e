"""continue_train writes into the files it came from, and measures what it wrote."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from requant.comparison.batches import batches_for
from requant.comparison.folders import folder_loss
from requant.config.quantizing import RequantizeGptq
from requant.config.training import ContinueTrain
from requant.errors import ContractError, ParityError
from requant.merging.trained import tied_names, write_trained
from requant.models.folder import INDEX_NAME, MASTER_NAME, served_dtype
from requant.models.headers import read_headers, read_shard_header
from requant.models.load import load_model
from requant.stages import continue_train, requantize_gptq
from tests.stages.conftest import STEPS, make_context

UNREAD = "model.layers.2.mtp.weight"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
GENTLE = STEPS.model_copy(update={"learning_rate": 2e-5})


def continued(folder: Path, model: Path, data: Path, **fields: Any) -> tuple[Path, dict]:
    context = make_context(folder)
    section = ContinueTrain(
        **{"optimisation": STEPS, "heldout_rows": 6, "dtype": "original", **fields}
    )
    return context.out, continue_train.execute(section, context, model=model, data=data)


@pytest.fixture(scope="module")
def mixed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with norms in float32, a tensor nobody loads, both tied ones, in two shards."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("mixed") / "base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {
        name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[UNREAD] = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half()
    names = sorted(tensors)
    parts = dict(zip(SHARDS, (names[:7], names[7:]), strict=True))
    for file, part in parts.items():
        noted = {"format": "pt", "of": file}
        save_file({name: tensors[name] for name in part}, folder / file, noted)
    files = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"note": "mine"}, "weight_map": files}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


def test_files_dtypes_and_what_is_not_loaded_survive(
    mixed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out, metrics = continued(tmp_path, mixed, tiny_data)
    for file in SHARDS:
        assert read_shard_header(out / file).raw == read_shard_header(mixed / file).raw
    for file in (INDEX_NAME, "config.json", "tokenizer.json"):
        assert (out / file).read_bytes() == (mixed / file).read_bytes()
    before, after = ({**load_file(f / SHARDS[0]), **load_file(f / SHARDS[1])} for f in (mixed, out))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {UNREAD}
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert 0 < metrics["changed_share"] < 1


def test_what_was_saved_is_measured_not_what_was_trained(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out, coarse = continued(tmp_path / "coarse", tiny_base, tiny_data)
    batches = batches_for(tiny_base, tiny_data / "heldout.jsonl", 6)
    for folder, name in ((tiny_base, "before"), (out, "saved")):
        assert coarse[f"heldout_loss_{name}"] == pytest.approx(
            folder_loss(folder, batches, "cpu"), abs=1e-5
        )
    assert coarse["heldout_loss_trained"] < coarse["heldout_loss_before"]
    assert 0 < coarse["rounding_kl"] < coarse["update_kl"]
    gain = coarse["heldout_loss_before"] - coarse["heldout_loss_trained"]
    assert coarse["update_gain"] == pytest.approx(gain, abs=1e-5)

    master, exact = continued(tmp_path / "exact", tiny_base, tiny_data, dtype="float32")
    assert {header.dtype for header in read_headers(master).values()} == {"F32"}
    assert (coarse["float32_master"], exact["float32_master"]) == (0, 0)
    assert json.loads((master / "config.json").read_text())["dtype"] == "float32"
    assert exact["heldout_loss_trained"] == coarse["heldout_loss_trained"]
    assert exact["heldout_loss_saved"] == exact["heldout_loss_trained"]
    assert (exact["kept_share"], exact["rounding_kl"]) == (pytest.approx(1, abs=1e-6), 0)

    # Nobody serves float32: what is not quantized of a master goes out in 16 bit.
    context = make_context(tmp_path / "shipped")
    section = RequantizeGptq(group_size=64, calibration_rows=8, fidelity_rows=4)
    requantize_gptq.execute(section, context, model=master, data=tiny_data)
    shipped = read_headers(context.out)
    assert shipped["model.embed_tokens.weight"].dtype == "BF16"
    assert json.loads((context.out / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (context.out / MASTER_NAME).exists()
    # In what its original is stored in.
    (master / MASTER_NAME).write_text('{"dtype": "float16"}')
    assert served_dtype(master) == "float16"


def test_a_training_that_rounding_takes_back_is_refused(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ParityError,
        match=r"continue_train: bfloat16 is too coarse for the update: rounding moves the model by "
        r".*over continue_train.rounding_max_kl_share=0.05.*Use continue_train.dtype=float16.*"
        r"float32 \(a master that rounds nothing\), or a larger update",
    ):
        continued(tmp_path / "coarse", tiny_base, tiny_data, optimisation=GENTLE)

    context = make_context(tmp_path / "auto")
    section = ContinueTrain(optimisation=GENTLE, heldout_rows=6)
    metrics = continue_train.execute(section, context, model=tiny_base, data=tiny_data)
    assert metrics["float32_master"] == 1
    assert metrics["heldout_loss_saved"] < metrics["heldout_loss_before"]
    assert {header.dtype for header in read_headers(context.out).values()} == {"F32"}
    said = " ".join(context.reporter.messages)
    assert re.search(r"bfloat16 is too coarse for the update: .*: saved in float32", said)


def test_trained_weights_without_a_place_are_refused(mixed: Path, tmp_path: Path) -> None:
    network = load_model(mixed, "cpu", dtype=torch.float32)
    assert tied_names(network) == [{"model.embed_tokens.weight", "lm_head.weight"}]
    trained, out = tmp_path / "trained", tmp_path / "out"
    network.save_pretrained(trained)
    out.mkdir()
    tensors = load_file(trained / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, trained / "model.safetensors")
    tied = tied_names(network)
    with pytest.raises(ContractError, match=r"model.norm.weight would stay as before the training"):
        write_trained(mixed, trained, out, tied=tied)
    save_file({**tensors, "model.norm.weight": norm[:1]}, trained / "model.safetensors")
    with pytest.raises(ContractError, match=r"no place for what was trained in model.norm.weight"):
        write_trained(mixed, trained, out, tied=tied)
    assert not any(out.iterdir())
    tensors["model.norm.weight"] = norm * torch.nan
    save_file(tensors, trained / "model.safetensors")
    with pytest.raises(ParityError, match=r"model.norm.weight is not finite as torch.float32"):
        write_trained(mixed, trained, out, tied=tied)
    assert not (out / "config.json").exists()
