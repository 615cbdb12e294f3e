"""Promotion is safe to repeat, deploys once per digest, and the way back is not collected."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from requant.config import Config
from requant.errors import ArtifactError, ConfigError
from requant.store import StageRecord, Store, all_records, verify
from requant.store.gc import collect
from requant.store.looks import read_looks
from requant.store.pins import holder, pin, read_pins
from tasks import tracking
from tasks.gatekeeping import require_reason
from tasks.promote import name_anchor, promote, register, registry_of, roll_back, standing
from tasks.tracking import registry as versions
from tests.support.chain import micro_config
from tests.support.nights import Samples, make_night
from tests.support.scores import model_scores

pytestmark = pytest.mark.usefixtures("mlflow_database")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return micro_config(tmp_path)


def night(
    config: Config, content: str, champion: str = "", scores: Samples | None = None
) -> tuple[tracking.TrackingRun, dict[str, StageRecord]]:
    """A night of artifacts that MLflow knows."""
    store = Store(config.state)
    records = make_night(store, content, champion, scores)
    uri = tracking.prepare_database(None, config.state)
    parent = tracking.open_parent(uri, "requant", flow_run_id=content, name=content, params={})
    run = tracking.open_stage(parent, "requantize_gptq")
    inputs = {"model": records["continue_train"], "data": records["prepare_data"]}
    tracking.close_stage(run, records["requantize_gptq"], inputs, store=store, cached=False)
    return parent, records


def evaluated(config: Config, content: str) -> StageRecord:
    return make_night(Store(config.state), content)["evaluate"]


@pytest.fixture
def registered(config: Config) -> Iterator[list[versions.ModelVersion]]:
    found = []
    for content in ("first", "second"):
        parent, records = night(config, content)
        arguments = (config, parent, records["requantize_gptq"], records["evaluate"])
        found.append(register(*arguments))
        assert register(*arguments) == found[-1]
    yield found


def test_registering_makes_one_version_a_digest(registered: list[versions.ModelVersion]) -> None:
    assert [item.version for item in registered] == [1, 2]
    assert len({item.digest for item in registered}) == 2
    assert registered[0].scores == {
        "describe_choice/acc": 0.41,
        "docstrings/word_perplexity": 61.2,
    }


def test_what_can_fail_comes_before_anything_is_registered(config: Config) -> None:
    parent, records = night(config, "first")
    model, evaluation = records["requantize_gptq"], records["evaluate"]
    store = Store(config.state)
    (store.object_path(model.digest) / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="was altered"):
        register(config, parent, model, evaluation)
    assert versions.all_versions(registry_of(config)) == []


def test_a_promotion_that_stopped_half_way_is_repeated(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    registry = registry_of(config)
    # As if the process had died after the alias and before the event.
    versions.move_champion(registry, registered[0])
    assert promote(config, versions.version_of(registry, 1)).to_deploy
    versions.mark(registry, registered[0], "deployed")
    assert not promote(config, versions.version_of(registry, 1)).to_deploy


def test_the_way_back_is_kept_and_taken(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    registry = registry_of(config)
    first, second = registered
    with pytest.raises(ConfigError, match="micro: has no champion; there is nothing to roll back"):
        roll_back(config)
    assert standing(config, second) == "challenger"
    for version in (first, second):
        assert promote(config, version).outcome == "champion"
    assert (standing(config, first), standing(config, second)) == ("challenger", "champion")
    pins, _ = read_pins(Store(config.state))
    assert set(pins.values()) == {first.digest, second.digest}
    assert roll_back(config).version == 1
    # The deployment has not said that it is done: repeating goes back no further.
    assert roll_back(config).version == 1
    serving = versions.champion(registry)
    assert serving is not None
    assert serving.version == 1
    versions.mark(registry, serving, "deployed")
    with pytest.raises(ConfigError, match="version 1 is the first champion"):
        roll_back(config)
    again = promote(config, versions.version_of(registry, 2), evaluated(config, "second"))
    assert again.outcome == "refused"
    assert "was rolled back at" in again.reason
    assert promote(config, versions.version_of(registry, 2)).outcome == "champion"


def test_the_retry_of_an_old_night_does_not_undo_a_newer_one(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    first, second = registered
    assert promote(config, second).outcome == "champion"
    late = promote(config, first, evaluated(config, "first"))
    assert late.outcome == "refused"
    assert "version 1 is older than the champion, version 2" in late.reason
    assert promote(config, first).outcome == "champion"


def judged(
    config: Config, content: str, new: float, champion: str = ""
) -> tuple[versions.ModelVersion, StageRecord]:
    """A night whose model is better than base and champion by so many nats a byte."""
    scores = {"requantized": model_scores(1, new), "base": model_scores(2)}
    if champion:
        scores["champion"] = model_scores(3)
    parent, records = night(config, content, champion, scores)
    model, evaluation = records["requantize_gptq"], records["evaluate"]
    return register(config, parent, model, evaluation), evaluation


def test_the_gate_lets_one_test_a_night_serve_and_writes_each_down(config: Config) -> None:
    store = Store(config.state.resolve())
    first, evaluation = judged(config, "first", 0.03)
    assert first.judged.verdict.startswith("promote: ")
    found = promote(config, first, evaluation)
    assert found.outcome == "champion"
    assert found.decision is not None
    assert found.decision.verdict == "promote"
    (look,) = read_looks(store, config.name)
    assert (look.candidate, look.verdict) == (first.digest, "promote")
    assert look.alpha == pytest.approx(0.05 / 365)
    # What serves is not judged again, and a night that is repeated spends nothing.
    assert promote(config, first, evaluation).decision is None
    second, evaluation = judged(config, "second", 0.0, first.digest)
    for _ in range(2):
        refused = promote(config, second, evaluation)
        assert refused.outcome == "refused"
        assert refused.reason.startswith("promote: not enough evidence\n- heldout_perplexity ")
        assert "requant promote CONFIG --reason TEXT" in refused.reason
        assert len(read_looks(store, config.name)) == 2


def test_a_year_that_is_spent_promotes_nothing_and_says_until_when(config: Config) -> None:
    gate = config.evaluate.gate.model_copy(update={"tests_a_year": 1})
    evaluate = config.evaluate.model_copy(update={"gate": gate})
    once = config.model_copy(update={"evaluate": evaluate})
    worse, evaluation = judged(once, "first", 0.0)
    assert promote(once, worse, evaluation).outcome == "refused"
    better, evaluation = judged(once, "second", 0.05)
    refused = promote(once, better, evaluation)
    assert refused.outcome == "refused"
    assert "alpha is 0: nothing can be shown by this test" in refused.reason
    (note,) = refused.notes
    in_a_year = datetime.now(UTC).date() + timedelta(days=365)
    assert note.endswith(f"is given out; there is some again on {in_a_year.isoformat()}")
    # A ledger that somebody edited is no way to a fresh year.
    path = Store(once.state.resolve()).ledger_path("micro")
    path.write_text(path.read_text().replace(worse.digest, "0" * 64))
    with pytest.raises(
        ArtifactError, match=r"ledgers/micro.json: is not as it was written .*or delete it"
    ):
        promote(once, better, evaluation)


def test_a_champion_that_was_not_evaluated_is_a_refusal(config: Config) -> None:
    first, evaluation = judged(config, "first", 0.03)
    promote(config, first, evaluation)
    blind, evaluation = judged(config, "second", 0.05)
    refused = promote(config, blind, evaluation)
    assert refused.outcome == "refused"
    assert "the champion, version 1 (" in refused.reason
    assert "was not evaluated beside tonight's model" in refused.reason


def test_an_anchor_that_was_lost_is_a_refusal(config: Config) -> None:
    first, evaluation = judged(config, "first", 0.03)
    promote(config, first, evaluation)
    pin(Store(config.state.resolve()), config.name, "anchor", "a" * 64)
    second, evaluation = judged(config, "second", 0.05, first.digest)
    assert second.judged.verdict.startswith(
        "not enough evidence: promote: the anchor (aaaaaaaaaaaa), was"
    )
    refused = promote(config, second, evaluation)
    assert refused.outcome == "refused"
    assert "the anchor (aaaaaaaaaaaa), was not evaluated" in refused.reason


def test_a_verdict_against_what_serves_no_more_is_none(config: Config) -> None:
    first, evaluation = judged(config, "first", 0.03)
    second, _ = judged(config, "second", 0.05)
    require_reason(config, second, None, "")
    promote(config, first, evaluation)
    serving = versions.champion(registry_of(config))
    assert serving is not None
    require_reason(config, serving, serving, "")
    with pytest.raises(ConfigError, match=r"of version 2 against what serves now \(promote: "):
        require_reason(config, second, serving, "")
    # Other rules are another test, with a share of its own.
    third, evaluation = judged(config, "third", 0.0, first.digest)
    promote(config, third, evaluation)
    fields = {**evaluation.key_fields["config"], "gate": {"margin": 0.5}}
    other = {**evaluation.key_fields, "config": fields}
    promote(config, third, evaluation.model_copy(update={"key_fields": other}))
    looks = read_looks(Store(config.state.resolve()), config.name)
    assert len({look.test for look in looks}) == len(looks) == 3


def test_a_person_who_overrides_the_gate_says_why(config: Config) -> None:
    bad, _ = judged(config, "first", -0.2)
    assert bad.judged.verdict.startswith("refuse: heldout_perplexity against the base")
    with pytest.raises(ConfigError, match=r"--reason: is empty, and the gate did not say promote"):
        require_reason(config, bad, None, " ")
    require_reason(config, bad, None, "the customer wants it")
    promote(config, bad, reason="the customer wants it")
    registry = registry_of(config)
    (found,) = registry.client.search_model_versions("name = 'micro'")
    assert found.tags["promoted because"] == "the customer wants it"


def test_what_a_laxer_gate_says_of_a_trial_opens_no_other(config: Config) -> None:
    evaluate = config.evaluate
    wider = evaluate.gate.model_copy(update={"margin": 0.03})
    fewer = evaluate.model_copy(update={"past_nights": 0})
    for number, lax in enumerate((evaluate.model_copy(update={"gate": wider}), fewer)):
        other = config.model_copy(update={"evaluate": lax})
        trial, _ = judged(other, f"trial {number}", 0.03)
        assert trial.judged.verdict.startswith("promote: ")
        require_reason(other, trial, None, "")
        told = r"against what .*\(promote: .*, by another section evaluate or anchor\)"
        with pytest.raises(ConfigError, match=told):
            require_reason(config, trial, None, "")
        again, _ = judged(config, f"trial {number}", 0.03)
        require_reason(config, again, None, "")


def test_promoting_what_serves_mends_its_pins(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    registry, store = registry_of(config), Store(config.state)
    for version in registered:
        promote(config, version)
    right, _ = read_pins(store)
    for post in ("champion", "previous"):
        store.pin_path(f"micro-{post}").write_text("garbage")
    assert len(collect(store, keep=1).held_back) == 2
    promote(config, versions.version_of(registry, 2))
    assert read_pins(store) == (right, [])
    assert collect(store, keep=1).held_back == ()
    # Which model all others are held against nobody else knows.
    store.pin_path("micro-anchor").write_text("garbage")
    with pytest.raises(ArtifactError, match=r"micro-anchor: is not JSON: .* put it back from a co"):
        promote(config, versions.version_of(registry, 1))
    serving = versions.champion(registry)
    assert serving is not None
    assert serving.version == 2
    anchor = store.pin_path("micro-anchor")
    assert read_pins(store)[0] == {path: right[path] for path in right.keys() - {anchor}}
    anchor.unlink()
    promote(config, versions.version_of(registry, 1))
    assert holder(store, "micro", "anchor") == registered[1].digest


def test_what_serves_is_not_collected(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    store = Store(config.state)
    promote(config, registered[0])
    # As if `--force` had put other bytes under the key.
    for record in all_records(store):
        if record.digest == registered[0].digest:
            store.record_path(record.key).unlink()
    collect(store, keep=1)
    verify(store, store.ref("model", registered[0].digest))


def test_a_harmed_model_does_not_serve(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    folder = Store(config.state).object_path(registered[1].digest)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"model.safetensors: was altered"):
        promote(config, registered[1])
    assert versions.champion(registry_of(config)) is None


def test_a_version_nobody_knows_is_refused(config: Config, registered: Any) -> None:
    with pytest.raises(ConfigError, match="micro: has no version 7; versions: 1, 2"):
        versions.version_of(registry_of(config), 7)


def test_only_a_person_names_another_anchor_and_says_why(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    registry, store = registry_of(config), Store(config.state)
    first, second = registered
    promote(config, first)
    promote(config, second)
    assert holder(store, "micro", "anchor") == first.digest
    with pytest.raises(ConfigError, match=r"--reason: is empty; say why later models may be held"):
        name_anchor(config, second, " ")
    assert holder(store, "micro", "anchor") == first.digest
    name_anchor(config, second, "the task changed")
    assert holder(store, "micro", "anchor") == second.digest
    assert holder(store, "micro", "champion") == second.digest
    promote(config, versions.version_of(registry, first.version))
    assert holder(store, "micro", "anchor") == second.digest
    kept = registry.client.get_model_version(registry.model, str(second.version))
    assert kept.tags["anchor because"] == "the task changed"
