"""What a night leaves in a real MLflow database."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from requant.errors import ConfigError
from requant.store import StageRecord, Store
from tasks import tracking
from tests.support.nights import CHAIN, make_night
from tests.support.tracked import ROOT, children, track


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def store(state: Path) -> Store:
    return Store(state)


@pytest.fixture(scope="module")
def uri(state: Path) -> str:
    return tracking.prepare_database(None, state)


@pytest.fixture(scope="module")
def records(store: Store) -> dict[str, StageRecord]:
    return make_night(store)


@pytest.fixture(scope="module")
def night(uri: str, store: Store, records: dict[str, StageRecord]) -> tracking.TrackingRun:
    return track(uri, store, records, "flow-1")


def logged_models(run: tracking.TrackingRun) -> dict[str, Any]:
    models = run.client.search_logged_models([run.experiment_id])
    assert len({model.params["digest"] for model in models}) == len(models)
    return {model.params["stage"]: model for model in models}


def artifact_names(client: Any, model_id: str) -> set[str]:
    return {file.path for file in client.list_logged_model_artifacts(model_id)}


def test_night_holds_every_stage(night: tracking.TrackingRun) -> None:
    parent = night.client.get_run(night.run_id)
    runs = children(night)

    assert set(runs) == set(CHAIN)
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert parent.data.params["name"] == "tiny"
    assert {file.path for file in night.client.list_artifacts(night.run_id)} == {
        "lineage.html",
        "report.html",
    }
    note = parent.data.tags["mlflow.note.content"]
    assert [line.split("]")[0] for line in note.splitlines()[3:]] == [f"1. [{x}" for x in CHAIN]
    assert f"runs/{night.run_id}/artifacts/lineage.html?" in note.splitlines()[1]
    chain = [model.model_id for model in logged_models(night).values()]
    assert all(f"models/{model_id}?" in note.splitlines()[0] for model_id in chain)
    assert runs["merge_fp16"].data.params["config.optimisation.max_steps"] == "40"


def test_artifact_root_is_absolute_and_in_the_state_folder(
    night: tracking.TrackingRun, state: Path
) -> None:
    root = night.client.get_experiment(night.experiment_id).artifact_location
    assert root.startswith((state.resolve() / "mlartifacts").as_uri())


def test_edges_join_the_models(
    night: tracking.TrackingRun, records: dict[str, StageRecord]
) -> None:
    models = logged_models(night)
    assert set(models) == {
        name for name, record in records.items() if record.kind in {"model", "adapter"}
    }
    for stage, run in children(night).items():
        taken = {item.model_id for item in run.inputs.model_inputs}
        given = [item.model_id for item in run.outputs.model_outputs]
        sources = [source for source in CHAIN[stage][1].values() if source in models]
        assert taken == {models[source].model_id for source in sources}
        assert given == ([models[stage].model_id] if stage in models else [])


def test_datasets_have_digest_and_context(
    night: tracking.TrackingRun, records: dict[str, StageRecord]
) -> None:
    used = {
        stage: item for stage, run in children(night).items() for item in run.inputs.dataset_inputs
    }
    contexts = {stage: item.tags[0].value for stage, item in used.items()}
    expected = {
        "train_adapter": "training",
        "merge_fp16": "heldout",
        "continue_train": "training",
        "requantize_gptq": "calibration",
        "evaluate": "evaluation",
    }
    assert contexts | expected == contexts
    digest = records["prepare_data"].digest
    assert {item.dataset.digest for item in used.values()} == {digest[:36]}


def test_breadcrumb_links_every_ancestor_in_order(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    crumbs = models["requantize_gptq"].tags["mlflow.note.content"].splitlines()[0]
    chain = ["prepare_base", "quantize_base", "train_adapter", "merge_fp16", "continue_train"]
    places = [crumbs.index(f"models/{models[stage].model_id}?") for stage in chain]
    assert places == sorted(places)
    assert crumbs.endswith(f"**gptq `{models['requantize_gptq'].params['digest'][:8]}`**")

    base = models["prepare_base"].tags["mlflow.note.content"]
    led_to = base.split("**Led to:**")[1]
    assert models["quantize_base"].model_id in led_to
    assert models["merge_fp16"].model_id in led_to
    assert models["continue_train"].model_id not in led_to


def test_scores_are_on_the_models(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    scores = {metric.key: metric.value for metric in models["requantize_gptq"].metrics}
    assert scores == {"describe_choice/acc": 0.41, "docstrings/word_perplexity": 61.2}
    history = night.client.get_metric_history(
        children(night)["evaluate"].info.run_id, "describe_choice/acc"
    )
    assert [(point.step, point.value) for point in history] == [(0, 0.31), (1, 0.41)]


def test_weights_stay_in_the_store(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    merged = artifact_names(night.client, models["merge_fp16"].model_id)
    assert merged == {"manifest.json", "config.json"}
    adapter = artifact_names(night.client, models["train_adapter"].model_id)
    assert adapter == {"manifest.json", "adapter_config.json", "model.safetensors"}
    evaluation = night.client.list_artifacts(children(night)["evaluate"].info.run_id)
    assert "scores.json" in {file.path for file in evaluation}


def test_curves_are_whole(night: tracking.TrackingRun, records: dict[str, StageRecord]) -> None:
    run_id = children(night)["train_adapter"].info.run_id
    points = night.client.get_metric_history(run_id, "loss")
    expected = records["train_adapter"].curves["loss"]
    assert tuple((point.step, point.value) for point in points) == expected


def test_curves_arrive_while_the_stage_runs(night: tracking.TrackingRun, uri: str) -> None:
    parent = tracking.open_parent(uri, "live", "flow-live", "night", {})
    run = tracking.open_stage(parent, "train_adapter")
    for step in range(120):
        tracking.log_points(run, {"loss": 1.0}, step)
    assert len(run.client.get_metric_history(run.run_id, "loss")) >= 100
    tracking.close_parent(parent, "KILLED", "", "", {})
    # Whoever cancels a night did not find a fault in its stage.
    assert run.client.get_run(run.run_id).info.status == "KILLED"


def test_cached_night_has_its_own_runs_and_no_new_models(
    night: tracking.TrackingRun, uri: str, store: Store, records: dict[str, StageRecord]
) -> None:
    before = {stage: model.model_id for stage, model in logged_models(night).items()}
    again = track(uri, store, records, "flow-2", cached=True)

    assert {stage: model.model_id for stage, model in logged_models(night).items()} == before
    runs = children(again)
    assert {run.data.tags["cache"] for run in runs.values()} == {"hit"}
    given = runs["merge_fp16"].outputs.model_outputs
    assert [item.model_id for item in given] == [before["merge_fp16"]]
    assert "Cached" in runs["merge_fp16"].data.tags["mlflow.note.content"]
    assert runs["merge_fp16"].data.metrics["parity_kl"] == pytest.approx(1.2e-5)
    # The models' scores are already there.
    assert len(logged_models(night)["requantize_gptq"].metrics) == 2


def test_repeating_a_flow_run_adds_nothing(
    night: tracking.TrackingRun, uri: str, store: Store, records: dict[str, StageRecord]
) -> None:
    again = track(uri, store, records, "flow-1")
    assert again.run_id == night.run_id
    runs = children(night)
    assert len(runs) == len(CHAIN)
    assert all(len(run.outputs.model_outputs) <= 1 for run in runs.values())
    assert len(runs["evaluate"].inputs.model_inputs) == 2
    assert runs["train_adapter"].info.status == "FINISHED"


def test_killed_night_is_resumed(uri: str, state: Path) -> None:
    script = (
        "import os, signal, sys; from tasks import tracking\n"
        "parent = tracking.open_parent(sys.argv[1], 'killed', 'flow-k', 'night', {})\n"
        "run = tracking.open_stage(parent, 'train_adapter')\n"
        "tracking.open_stage(parent, 'prepare_base')\n"
        "print(parent.run_id, run.run_id, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, uri],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parent_id, stage_id = killed.stdout.split()

    parent = tracking.open_parent(uri, "killed", "flow-k", "night", {})
    stage = tracking.open_stage(parent, "train_adapter")
    assert (parent.run_id, stage.run_id) == (parent_id, stage_id)
    tracking.fail_stage(stage, RuntimeError("out of patience"))
    tracking.close_parent(parent, "FAILED", "", "", {})

    runs = children(parent)
    assert parent.client.get_run(parent.run_id).info.status == "FAILED"
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    assert "out of patience" in runs["train_adapter"].data.tags["mlflow.note.content"]


def test_a_night_that_died_without_a_word_is_ended_by_the_next(uri: str, state: Path) -> None:
    def opened(flow_run: str, line: str = "tiny") -> tracking.TrackingRun:
        run = tracking.open_parent(uri, "orphans", flow_run, "night", {})
        tracking.end_orphans(run, line, state)
        return run

    def status(run: tracking.TrackingRun) -> str:
        return str(run.client.get_run(run.run_id).info.status)

    died = opened("flow-died")
    stage = tracking.open_stage(died, "train_adapter")
    another = opened("flow-of-another-line", "other")
    assert status(died) == "RUNNING"
    later = opened("flow-later")
    assert [status(run) for run in (died, stage, another, later)] == [
        "KILLED",
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]
    assert died.client.get_run(died.run_id).data.tags["verdict"] == "killed"
    assert status(opened("flow-died")) == "RUNNING"


def test_server_that_is_away_does_not_stop_a_training(
    night: tracking.TrackingRun, uri: str
) -> None:
    parent = tracking.open_parent(uri, "live", "flow-away", "night", {})
    run = tracking.open_stage(parent, "train_adapter")
    away = dataclasses.replace(run, uri="http://127.0.0.1:9")
    for step in range(200):
        tracking.log_points(away, {"loss": 1.0}, step)
    assert len(away.points) == 200
    tracking.fail_stage(away, RuntimeError("what really happened"))
    tracking.fail_stage(dataclasses.replace(away, uri=uri), RuntimeError("stopped"))
    assert len(run.client.get_metric_history(run.run_id, "loss")) == 200
    tracking.close_parent(parent, "FAILED", "", "", {})


def test_deleted_experiment_is_refused_with_the_way_out(uri: str) -> None:
    parent = tracking.open_parent(uri, "gone", "flow-g", "night", {})
    tracking.close_parent(parent, "FINISHED", "", "", {})
    parent.client.delete_experiment(parent.experiment_id)
    with pytest.raises(ConfigError, match=r"tracking.experiment: 'gone' was deleted.*restore"):
        tracking.open_parent(uri, "gone", "flow-g2", "night", {})


def test_importing_the_tasks_does_not_import_mlflow() -> None:
    check = "import sys, tasks.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=60)
