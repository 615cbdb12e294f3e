"""Promotion is safe to repeat, deploys once per digest, and the way back is not collected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from requant.config import Config
from requant.errors import ArtifactError, ConfigError
from requant.store import StageRecord, Store, all_records, verify
from requant.store.gc import collect
from requant.store.pins import holder, read_pins
from tasks import tracking
from tasks.promote import promote, register, registry_of, roll_back, standing
from tasks.tracking import registry as versions
from tests.support.chain import micro_config
from tests.support.nights import make_night


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return micro_config(tmp_path)


def night(config: Config, content: str) -> tuple[tracking.TrackingRun, dict[str, StageRecord]]:
    """A night of artifacts that MLflow knows."""
    store = Store(config.state)
    records = make_night(store, content)
    uri = tracking.prepare_database(None, config.state)
    parent = tracking.open_parent(uri, "requant", flow_run_id=content, name=content, params={})
    run = tracking.open_stage(parent, "requantize_gptq")
    inputs = {"model": records["continue_train"], "data": records["prepare_data"]}
    tracking.close_stage(run, records["requantize_gptq"], inputs, store=store, cached=False)
    return parent, records


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
    (store.object_path(evaluation.digest) / "paired.json").write_text("[]")
    update = {"auto": True, "guard": ("old_perplexity",)}
    guarded = config.model_copy(update={"promote": config.promote.model_copy(update=update)})
    with pytest.raises(ConfigError, match=r"guard: 'old_perplexity' was not compared .* nothing"):
        register(guarded, parent, model, evaluation)
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
    again = promote(config, versions.version_of(registry, 2), paired=[])
    assert again.outcome == "refused"
    assert "was rolled back at" in again.reason
    assert promote(config, versions.version_of(registry, 2)).outcome == "champion"


def test_the_retry_of_an_old_night_does_not_undo_a_newer_one(
    config: Config, registered: list[versions.ModelVersion]
) -> None:
    first, second = registered
    assert promote(config, second, paired=[]).outcome == "champion"
    late = promote(config, first, paired=[])
    assert late.outcome == "refused"
    assert "version 1 is older than the champion, version 2" in late.reason
    # What guarded nothing is said of a refusal too.
    section = config.promote.model_copy(update={"guard": ("past_heldout_perplexity",)})
    guarded = config.model_copy(update={"promote": section})
    (note,) = promote(guarded, first, paired=[]).notes
    assert note.startswith("promote.guard: past_heldout_perplexity guarded nothing")
    assert promote(config, first).outcome == "champion"


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
