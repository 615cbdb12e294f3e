"""A night through the command line, on a real Prefect server and a real MLflow database."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from prefect.artifacts import Artifact

from requant.config import STAGE_NAMES, Config
from requant.config.loading import load_config
from requant.errors import TransientError
from requant.store import StageRecord, Store, all_records, locked
from tasks.promote import register
from tasks.tracking import TrackingRun
from tests.support.chain import LENIENT_GATE, MICRO
from tests.support.commands import newest_report, requant, states
from tests.support.row_files import noise, write
from tests.support.stages import all_stages, stages_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration whose night is done."""
    folder = tmp_path_factory.mktemp("project")
    document = yaml.safe_load(MICRO) | {"state": str(folder / "state")}
    (folder / "micro.yaml").write_text(yaml.safe_dump(document))
    assert "ready: " in requant("init", folder / "micro.yaml")
    before = requant("status", folder / "micro.yaml")
    assert states(before)["prepare_base"] == "run"
    assert states(before)["train_adapter"] == "waits"
    output = requant("run", folder / "micro.yaml")
    assert states(output) == all_stages("done", load_config(folder / "micro.yaml"))
    assert "report.html" in output
    assert re.search(r"Prefect:  http://\S+/flow-run/", output)
    assert "mlflow server --app-name requant --backend-store-uri sqlite:///" in output
    return folder


def test_the_second_night_is_cached_and_mlflow_has_both(folder: Path) -> None:
    config = load_config(folder / "micro.yaml")
    for command in ("status", "run"):
        assert states(requant(command, folder / "micro.yaml")) == all_stages("cached", config)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "requant"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 2
    for parent in parents:
        assert {"ppl base", "ppl night", "size"} <= parent.data.metrics.keys()
        assert parent.data.tags["verdict"] == "challenger"
        nested = [
            run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        ]
        assert sorted(run.info.run_name for run in nested) == sorted(stages_on(config))
        files = {item.path for item in client.list_artifacts(parent.info.run_id)}
        assert {"lineage.html", "report.html"} <= files
    models = client.search_logged_models([experiment.experiment_id])
    digests = [model.params["digest"] for model in models]
    assert len(digests) == len(set(digests)) == 6


def test_a_state_folder_that_was_copied_says_cached(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "state", tmp_path / "state")
    there = ("--set", f"state={tmp_path / 'state'}")
    output = requant("run", folder / "micro.yaml", *there)
    assert states(output) == all_stages("cached", load_config(folder / "micro.yaml"))


def test_a_changed_knob_re_runs_what_is_downstream_and_explain_says_why(folder: Path) -> None:
    change = ("--set", "requantize_gptq.damp_percent=0.1")
    plan = requant("status", folder / "micro.yaml", *change)
    assert states(plan)["requantize_gptq"] == "run"
    assert "config.damp_percent: 0.05 -> 0.1" in plan
    output = states(requant("run", folder / "micro.yaml", *change))
    assert [stage for stage, state in output.items() if state == "done"] == [
        "requantize_gptq",
        "evaluate",
    ]
    explained = requant("explain", "requantize_gptq", "--state", folder / "state")
    assert re.search(r"config.damp_percent\s+0.05\s+0.1", explained)


def test_a_stage_over_its_limit_fails_the_night_and_says_what_to_do(folder: Path) -> None:
    limit = ("--set", "merge_fp16.trained_max_kl=1e-9")
    output = requant("run", folder / "micro.yaml", *limit, fails=1)
    assert states(output)["merge_fp16"] == "failed"
    assert states(output)["train_adapter"] == "cached"
    assert states(output)["evaluate"] == "not reached"
    assert "Missed: merge_fp16.trained_max_kl=1e-09" in output
    assert "use a finer quantize_base.method" in output
    assert re.search(r"^Failed: merge_fp16", output, re.M)
    assert "encountered an exception" not in output
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "requant"]
    failed = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    assert {run.info.run_name.split()[0] for run in failed} == {"merge_fp16", "micro"}
    verdicts = {run.data.tags.get("verdict", "") for run in failed}
    assert verdicts == {"failed: merge_fp16", ""}
    # Cause and way out stand first, wherever a person looks.
    for run in failed:
        assert "use a finer quantize_base.method" in run.data.tags["mlflow.note.content"][:1000]
    page = newest_report(folder)
    assert page.index("merge_fp16 failed") < page.index("use a finer") < page.index("Stages")


def test_one_document_is_evaluated_and_leaves_what_is_registered(folder: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    before = {v.version: v.tags for v in client.search_model_versions("name = 'micro'")}
    output = requant("run", folder / "micro.yaml", "--set", "evaluate.limit=1")
    assert states(output)["evaluate"] == "done"
    assert "too few documents" in newest_report(folder)
    after = {v.version: v.tags for v in client.search_model_versions("name = 'micro'")}
    assert after == before


def test_a_night_of_noise_does_not_serve(folder: Path) -> None:
    """The night's own held-out rows like it: the text that no night brings refuses it."""
    requant("promote", folder / "micro.yaml", "--reason", "a first model")
    assert re.search(
        r"promote\s+done\s.*version \d+: champion", requant("run", folder / "micro.yaml")
    )
    write(folder / "noise.jsonl", noise(80))
    changes = (
        f"prepare_data.source={{kind: files, train: [{folder}/noise.jsonl]}}",
        "prepare_data.heldout_fraction=0.2",
        "train_adapter.optimisation.max_steps=40",
        "merge_fp16={trained_max_kl: 2, trained_max_gain_lost: 9}",
        "requantize_gptq.fidelity_max_kl=2",
        "prepare_data.max_evaluation_rows=16",
    )
    words = [word for change in changes for word in ("--set", change)]
    auto = ["--set", "promote.auto=true"]
    refused = requant("run", folder / "micro.yaml", *words, *auto, fails=2)
    assert "too few documents: heldout_perplexity (16), response_choice (16), old_" in refused

    lenient = [
        "--set",
        f"evaluate.gate={json.dumps({**LENIENT_GATE, 'margin': 0.004, 'tests_a_year': 2})}",
    ]
    output = requant("run", folder / "micro.yaml", *words, *auto, *lenient)

    harmed = r"past_heldout_perplexity against the champion: -\S+ .*a loss of 0.004"
    assert re.search(rf"promote\s+refused.*promote: refuse.*{harmed}", output, re.S)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    serving = client.get_model_version_by_alias("micro", "champion")
    bad = client.get_model_version_by_alias("micro", "challenger")
    assert serving.version != bad.version
    # The nights before held docstrings out: those are evaluated too.
    assert "past_heldout_perplexity" in bad.tags["scores"]
    report = newest_report(folder)
    assert "<h2>promote refused</h2><pre>promote: refuse\n- " in report
    assert "<h2>The gate: refuse</h2>" in report
    # Who looks at the night in MLflow reads the reason first.
    experiment = client.get_experiment_by_name("requant")
    (night,) = client.search_runs([experiment.experiment_id], "tags.verdict = 'refused'")
    note = night.data.tags["mlflow.note.content"]
    assert note.index("heldout_perplexity against the champion") < note.index("prepare_data")


def test_a_page_that_cannot_be_drawn_or_linked_fails_no_night(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*words: object) -> str:
        raise ZeroDivisionError("<nothing to draw>")

    def away(*words: object) -> dict[str, str]:
        raise TransientError("the server is away")

    monkeypatch.setattr("tasks.nightly.pages.night_report", broken)
    monkeypatch.setattr("tasks.tracking.model_links", away)
    assert states(requant("run", folder / "micro.yaml"))["evaluate"] == "cached"
    assert "page has no links to MLflow's models: the server is away" in caplog.text
    # Said of the dataset, before anything is trained.
    assert re.search(r"old_perplexity: \d+ documents, spread .* \(of the last ni", caplog.text)
    assert "could not be drawn: ZeroDivisionError: &lt;nothing to draw&gt;" in newest_report(folder)


def test_a_page_that_cannot_be_written_fails_no_night(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports = folder / "state/reports"
    reports.rename(folder / "state/aside")
    reports.write_text("no folder")
    try:
        requant("run", folder / "micro.yaml")
    finally:
        reports.unlink()
        (folder / "state/aside").rename(reports)
    assert "its pages in the state folder could not be written (" in caplog.text
    assert "run it again to write them, its stages are cached" in caplog.text
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "requant"]
    assert client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'") == []


def test_a_night_that_fails_in_promote_says_so_on_every_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(
        config: Config, run: TrackingRun, model: StageRecord, scores: StageRecord
    ) -> object:
        path = Store(config.state).object_path(model.digest) / "config.json"
        content = path.read_bytes()
        path.write_bytes(b"{}")
        try:
            return register(config, run, model, scores)
        finally:
            path.write_bytes(content)

    monkeypatch.setattr("tasks.nightly.night.register", damaged)
    output = requant("run", folder / "micro.yaml", fails=1)
    assert re.search(r"^\s*promote\s+failed\b", output, re.M)
    assert len(re.findall(r"^\s*promote\s", output, re.M)) == 1
    page = newest_report(folder)
    assert page.index("promote failed") < page.index("config.json: was altered")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/state/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "requant"]
    (failed,) = client.search_runs([experiment.experiment_id], "tags.verdict = 'failed: promote'")
    assert failed.info.status == "FAILED"
    assert "config.json: was altered" in failed.data.tags["mlflow.note.content"][:1000]
    newest = Artifact.get("night-micro")
    assert "**promote failed**" in newest.data


def test_two_nights_of_one_line_never_run_at_once(folder: Path) -> None:
    with locked(Store(folder / "state").lock_path("night-micro")):
        output = requant("run", folder / "micro.yaml", fails=1)
    assert "another night of micro is in progress" in output
    assert "this one is skipped" in output


def test_lineage_verify_and_gc_know_the_store(folder: Path) -> None:
    store = Store(folder / "state")
    state = ("--state", folder / "state")
    last = next(r for r in reversed(all_records(store)) if r.stage == "requantize_gptq")
    tree = requant("lineage", last.digest[:12], *state)
    assert all(stage in tree for stage in ("prepare_base", "train_adapter", "merge_fp16"))
    assert "├─" in tree
    assert "artifacts are right (every byte)" in requant("verify", "--deep", *state)
    assert "would delete 0 folders" in requant("gc", "--dry-run", *state)
    planned = requant("gc", "--keep", "1", "--dry-run", *state)
    assert requant("gc", "--keep", "1", *state) == planned.replace("would delete", "deleted")
    assert "artifacts are right" in requant("verify", *state)
    last = next(r for r in reversed(all_records(store)) if r.stage == "requantize_gptq")
    (store.object_path(last.digest) / "config.json").unlink()
    assert "config.json: is missing" in requant("verify", *state, fails=1)
    broken = store.record_path("0" * 64)
    broken.write_text("{")
    said = requant("verify", *state, fails=1)
    assert re.search(f"{broken}: is not JSON: .*; the night that needs .*, or remove it: ", said)
    broken.unlink()


def test_the_look_before_the_night_stops_it_before_a_stage_and_status_shows_it(
    folder: Path,
) -> None:
    from flows.incremental_training import incremental_training
    from requant.config.loading import load_config

    store = Store(folder / "state")
    records = len(all_records(store))
    wrong = ("requantize_gptq.group_size=128", "train_adapter.target_modules=[c_attn]")
    changes = [word for change in wrong for word in ("--set", change)]
    texts = (
        "requantize_gptq.group_size: 128 does not divide in_features=64",
        "train_adapter.target_modules: c_attn not in this model",
    )
    refused = requant("run", folder / "micro.yaml", *changes, fails=2)
    plan = requant("status", folder / "micro.yaml", *changes, fails=1)
    assert states(plan)["train_adapter"]
    flow = incremental_training(load_config(folder / "micro.yaml", wrong), return_state=True)
    assert flow.is_failed()
    for text in texts:
        assert text in refused
        assert f"problem: {text}" in plan
        assert text in str(flow.message)
    assert len(all_records(store)) == records


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "none.yaml"), "none.yaml: cannot be read"),
        (("run", "{config}", "--force", "merge"), "stage 'merge': unknown; valid: prepare_base,"),
        (("run", "{config}", "--set", "seed"), "expected section.field=value"),
        (
            ("status", "{config}", "--force", "evaluate", "--set", "evaluate.enabled=false"),
            "--force evaluate: is switched off by evaluate.enabled=false",
        ),
        (("explain", "merge"), "stage 'merge': unknown"),
        (("verify", "--state", "/nowhere"), "--state /nowhere: holds no records"),
        (("lineage", "zz", "--state", "{state}"), "digest 'zz': expected one artifact"),
    ],
)
def test_bad_words_are_refused_by_name(folder: Path, words: tuple[str, ...], text: str) -> None:
    names = {"config": folder / "micro.yaml", "state": folder / "state"}
    assert text in requant(*(word.format(**names) for word in words), fails=2)


def test_the_report_stands_alone(folder: Path) -> None:
    reports = sorted((folder / "state" / "reports").glob("*/report.html"))
    summaries = [json.loads(path.with_name("summary.json").read_text()) for path in reports]
    assert len(reports) == len(summaries) >= 1
    for path in reports:
        page = path.read_text()
        if "could not be drawn" in page:
            continue
        assert "http://" not in re.sub(r'xmlns="[^"]*"', "", page)
        assert all(stage in page for stage in STAGE_NAMES)
