"""The model registry: evaluated models as versions, and the aliases that say which one serves."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from requant.errors import ConfigError, ContractError
from requant.names import TAG_CHARACTERS, tracking_value
from requant.store import StageRecord
from tasks.tracking.connection import TrackingRun, preload, probe, transient
from tasks.tracking.models import find_models

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

CHALLENGER = "challenger"
CHAMPION = "champion"

Mark = Literal["deployed", "rolled_back"]
"""What happened to a version, with the time it happened; tags of the version."""


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model."""

    client: "MlflowClient" = field(repr=False)
    uri: str
    model: str


@dataclass(frozen=True)
class Judged:
    """The gate's last verdict on a model, and what it is worth only beside."""

    verdict: str = ""
    """Verdict on one line; empty where none was written down."""
    held_against: str = ""
    """Digest of what served then; empty for the base."""
    rules: str = ""
    """Digest of what decides it: what a laxer gate said of a trial opens no other."""


@dataclass(frozen=True)
class ModelVersion:
    """One evaluated model."""

    model: str
    version: int
    digest: str
    model_id: str
    """Id of the version's LoggedModel."""
    scores: Mapping[str, float]
    documents: int
    """The scores are of, all tasks together; 0 where it was not written down."""
    replaced: int | None
    """Version that was champion before it."""
    marks: Mapping[str, str]
    """Mark to ISO time."""
    judged: Judged = Judged()


def open_registry(uri: str, model: str) -> Registry:
    """Reach the registry.

    Args:
        uri: As `prepare_database` returns it.
        model: Name of the registered model.

    Raises:
        TransientError: If a server does not answer.
    """
    preload()
    from mlflow import MlflowClient

    probe(uri)
    with transient(uri):
        return Registry(MlflowClient(tracking_uri=uri, registry_uri=uri), uri, model)


def ensure_version(
    registry: Registry,
    night: TrackingRun,
    model: StageRecord,
    scores: Mapping[str, float],
    documents: int,
    judged: Judged = Judged(),
) -> ModelVersion:
    """Find the version of a model by its digest, or register it; it becomes the challenger.

    Scores and verdict of a version that is there already are replaced by those of an evaluation on
    as many documents or more: a look at one document must not stand where a whole one stood.

    Args:
        registry: Where to.
        night: Run whose experiment holds the model's LoggedModel.
        model: Record of the requantized model.
        scores: Of the model, `task/metric` to value.
        documents: The scores are of, all tasks together.
        judged: By the gate.

    Raises:
        ContractError: If the model was never tracked.
    """
    tags = {
        "scores": json.dumps(dict(scores)),
        "documents": str(documents),
        **_tags(judged),
    }
    found = [item for item in all_versions(registry) if item.digest == model.digest]
    if found:
        version = found[-1]
        if documents >= version.documents:
            version = replace(
                version,
                scores=dict(scores),
                documents=documents,
                judged=Judged(**_tags(judged)),
            )
            with transient(registry.uri):
                for name, value in tags.items():
                    _tag(registry, version, name, value)
    else:
        logged = find_models(night, [model.digest]).get(model.digest)
        if logged is None:
            raise ContractError(
                f"promote: the model {model.digest[:12]} is not in MLflow's experiment; run the "
                "night again, its cached stages are tracked then"
            )
        with transient(registry.uri):
            _ensure_name(registry)
            made = registry.client.create_model_version(
                registry.model,
                # `models:/ID` would be looked up under mlflow's global address, not this client's.
                source=logged.artifact_location,
                run_id=logged.source_run_id,
                model_id=logged.model_id,
                tags={"digest": model.digest, **tags},
            )
        version = _version(made)
    with transient(registry.uri):
        registry.client.set_registered_model_alias(registry.model, CHALLENGER, str(version.version))
    return version


def all_versions(registry: Registry) -> list[ModelVersion]:
    """Return every version requant registered, oldest first."""
    with transient(registry.uri):
        found = registry.client.search_model_versions(f"name = '{registry.model}'")
    versions = [_version(item) for item in found if "digest" in item.tags]
    return sorted(versions, key=lambda item: item.version)


def champion(registry: Registry) -> ModelVersion | None:
    """Return the version that serves, or None before the first promotion."""
    return _by_alias(registry, CHAMPION)


def version_of(registry: Registry, number: int | None) -> ModelVersion:
    """Return a version by its number, or the challenger.

    Raises:
        ConfigError: If there is no such version, with those there are.
    """
    versions = all_versions(registry)
    found: ModelVersion | None
    if number is None:
        found = _by_alias(registry, CHALLENGER)
    else:
        found = next((item for item in versions if item.version == number), None)
    if found is None:
        wanted = CHALLENGER if number is None else f"version {number}"
        known = ", ".join(str(item.version) for item in versions) or "none; run a night first"
        raise ConfigError(f"{registry.model}: has no {wanted}; versions: {known}")
    return found


def move_champion(registry: Registry, version: ModelVersion, *, back: bool = False) -> None:
    """Point the champion's alias at a version; forward, it remembers the one before it."""
    before = champion(registry)
    with transient(registry.uri):
        if before is not None and before.version != version.version and not back:
            # Before the alias: a crash between the two must not lose the way back.
            _tag(registry, version, "replaced", str(before.version))
        registry.client.set_registered_model_alias(registry.model, CHAMPION, str(version.version))


def mark(registry: Registry, version: ModelVersion, what: Mark) -> None:
    """Write down that something happened to a version, and when."""
    with transient(registry.uri):
        _tag(registry, version, what, datetime.now(UTC).isoformat(timespec="seconds"))


def note(registry: Registry, version: ModelVersion, name: str, text: str) -> None:
    """Keep a sentence with a version: who reads it in MLflow finds it among its tags."""
    with transient(registry.uri):
        _tag(registry, version, name, tracking_value(text, TAG_CHARACTERS))


def note_judged(registry: Registry, version: ModelVersion, judged: Judged) -> None:
    """Keep a verdict with a version, and what it is worth only beside."""
    with transient(registry.uri):
        for name, text in _tags(judged).items():
            _tag(registry, version, name, text)


def _tags(judged: Judged) -> dict[str, str]:
    return {name: tracking_value(text, TAG_CHARACTERS) for name, text in asdict(judged).items()}


def unmark(registry: Registry, version: ModelVersion, what: Mark) -> None:
    """Take back that something happened."""
    if what in version.marks:
        with transient(registry.uri):
            registry.client.delete_model_version_tag(registry.model, str(version.version), what)


def _by_alias(registry: Registry, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    with transient(registry.uri):
        try:
            found = registry.client.get_model_version_by_alias(registry.model, alias)
        except MlflowException as error:
            if error.error_code not in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}:
                raise
            return None
    return _version(found)


def _ensure_name(registry: Registry) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.client.create_registered_model(registry.model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tag(registry: Registry, version: ModelVersion, name: str, value: str) -> None:
    registry.client.set_model_version_tag(registry.model, str(version.version), name, value)


def _version(found: "MlflowVersion") -> ModelVersion:
    tags: dict[str, Any] = found.tags
    if "digest" not in tags:
        raise ConfigError(
            f"{found.name}: version {found.version} was not registered by requant, it has no "
            "digest; point its alias at another version in MLflow"
        )
    replaced = tags.get("replaced")
    return ModelVersion(
        model=found.name,
        version=int(found.version),
        digest=tags["digest"],
        model_id=found.model_id or "",
        scores=json.loads(tags.get("scores", "{}")),
        documents=int(tags.get("documents", 0)),
        replaced=int(replaced) if replaced else None,
        judged=Judged(**{item.name: tags.get(item.name, "") for item in fields(Judged)}),
        marks={name: tags[name] for name in ("deployed", "rolled_back") if name in tags},
    )
