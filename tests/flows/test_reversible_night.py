"""A reversible night through the command line: evaluated, registered, and undone."""

import json
from pathlib import Path

import yaml

from requant.config.fit import OFF_THE_GRID
from requant.config.loading import load_config
from requant.quantization.grid_delta import digests
from requant.store import Store, all_records
from requant.store.pins import holder
from tests.support.chain import MICRO
from tests.support.commands import newest_report, requant, states
from tests.support.stages import all_stages


def reversible(state: Path) -> dict:
    document = yaml.safe_load(MICRO)
    optimisation = document["train_adapter"]["optimisation"] | {"learning_rate": 0.3}
    return document | {
        "state": str(state),
        "quantize_base": {"method": "gptq", "group_size": 64, "calibration_rows": 8},
        **{name: {"enabled": False} for name in OFF_THE_GRID},
        "train_on_grid": {
            "enabled": True,
            "optimisation": optimisation,
            "heldout_rows": 4,
            # Of a model of 0.1 million weights the names of layers are a larger share.
            "delta_max_share": 0.5,
        },
    }


def test_a_night_on_the_grid_is_evaluated_registered_and_undone(tmp_path: Path) -> None:
    path = tmp_path / "micro.yaml"
    path.write_text(yaml.safe_dump(reversible(tmp_path / "state")))
    config = load_config(path)
    assert states(requant("run", path)) == all_stages("done", config)

    store = Store(config.state)
    records = {record.stage: record for record in all_records(store)}
    assert set(records["evaluate"].key_fields["inputs"]) == {
        *("data", "base", "quantized", "requantized")
    }
    base, shipped = (records[stage].digest for stage in ("quantize_base", "train_on_grid"))
    assert records["evaluate"].key_fields["inputs"]["requantized"] == shipped
    assert records["train_on_grid"].metrics["trained_kl"] == 0
    evaluation = store.object_path(records["evaluate"].digest)
    assert {row["later"] for row in json.loads((evaluation / "paired.json").read_text())} == {
        *("quantized", "requantized")
    }
    page = newest_report(tmp_path)
    for told in ("train_on_grid", "of the codes moved", "version 1: challenger"):
        assert told in page
    assert "up to requantize_gptq" not in page
    assert "train_on_grid" in requant("lineage", shipped[:12], "--state", config.state)
    assert states(requant("status", path)) == all_stages("cached", config)

    assert holder(store, config.name, "champion") is None
    requant("promote", path, "--reason", "a person looked")
    assert holder(store, config.name, "champion") == shipped
    said = requant("undo", store.object_path(shipped), "--out", tmp_path / "undone")
    assert "each with its sha256" in " ".join(said.split())
    assert digests(tmp_path / "undone") == digests(store.object_path(base))
