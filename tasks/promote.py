"""promote: register the evaluated model, let it serve once the gate lets it, and say so."""

from dataclasses import dataclass
from typing import Literal

from prefect.events import emit_event

from requant.config import Config
from requant.errors import ConfigError, GateError
from requant.evaluation.samples import count_documents
from requant.gate import Decision
from requant.ledger.nights import now_serves
from requant.store import StageRecord, Store, materialise, verify_to_serve
from requant.store.pins import holder, is_broken, pin
from requant.store.room import naming_full_disk
from tasks import tracking
from tasks.gatekeeping import advice, judged_by, refusal, said, spend
from tasks.tracking import registry as versions
from tasks.tracking.registry import ModelVersion, Registry

PROMOTED = "model.promoted"
REFUSED = "model.refused"

Outcome = Literal["challenger", "champion", "refused"]


@dataclass(frozen=True)
class Promotion:
    """What came of a model that was evaluated."""

    version: ModelVersion
    outcome: Outcome
    reason: str
    """Why it was refused; empty where it was not."""
    to_deploy: bool
    """It serves now by right, and has not been deployed yet."""
    decision: Decision | None = None
    """The gate's; None where a person decides, or the model serves already."""
    notes: tuple[str, ...] = ()
    """What a person should know of the gate."""


def registry_of(config: Config) -> Registry:
    """Reach the registry of a configuration's model line."""
    uri = tracking.prepare_database(config.tracking.uri, config.state.resolve())
    return versions.open_registry(uri, config.name)


def serving_of(config: Config) -> ModelVersion | None:
    """Return the version that serves; None before the first promotion."""
    return versions.champion(registry_of(config))


def register(
    config: Config, night: tracking.TrackingRun, model: StageRecord, evaluation: StageRecord
) -> ModelVersion:
    """Register an evaluated model as the challenger; repeating it changes nothing.

    Raises:
        ArtifactError: If a byte of the model is wrong.
    """
    store = Store(config.state.resolve())
    # What can fail comes first: a failed night registers nothing.
    verify_to_serve(store, store.ref("model", model.digest))
    prefix = "requantized/"
    scores = {
        name.removeprefix(prefix): value
        for name, value in evaluation.metrics.items()
        if name.startswith(prefix)
    }
    registry = registry_of(config)
    serving = versions.champion(registry)
    first = int(evaluation.key_fields["config"]["first_documents"])
    documents = count_documents(materialise(store, evaluation.digest), "requantized", first)
    verdict = said(advice(config, serving, evaluation))
    judged = judged_by(config, serving, verdict)
    return versions.ensure_version(registry, night, model, scores, documents, judged)


def promote(
    config: Config,
    version: ModelVersion,
    evaluation: StageRecord | None = None,
    reason: str = "",
) -> Promotion:
    """Let a version serve and emit `model.promoted`; safe to repeat after a crash at any step.

    Args:
        config: `evaluate.gate` says what must be shown.
        version: The challenger, or an older one.
        evaluation: Of it, by which the gate decides; None where a person does.
        reason: Of the person, kept with the version.

    Raises:
        ArtifactError: If a byte of the model is wrong, or the gate's ledger or the anchor's pin
            cannot be believed.
    """
    registry = registry_of(config)
    # An attempt before this one may have marked it.
    version = versions.version_of(registry, version.version)
    serving = versions.champion(registry)
    moves = serving is None or serving.version != version.version
    decision: Decision | None = None
    notes: tuple[str, ...] = ()
    if evaluation is not None and moves:
        try:
            _refuse_known(version, serving)
            decision, notes = spend(config, serving, evaluation)
            versions.note_judged(registry, version, judged_by(config, serving, said(decision)))
            if decision.verdict != "promote":
                raise GateError(refusal(decision))
        except GateError as error:
            verdict = decision.verdict if decision else "refuse"
            _emit(REFUSED, config, version, reason=str(error), verdict=verdict)
            return Promotion(version, "refused", str(error), False, decision, notes)
    store = Store(config.state.resolve())
    verify_to_serve(store, store.ref("model", version.digest))
    # Which model that was nobody else knows: a person decides before anything is moved.
    unanchored = holder(store, config.name, "anchor") is None
    with naming_full_disk("promote", store.root, "what served before goes on serving"):
        if serving is not None and moves:
            # The way back must not be collected as garbage.
            pin(store, config.name, "previous", serving.digest)
        elif is_broken(store, config.name, "previous") and version.replaced is not None:
            before = versions.version_of(registry, version.replaced)
            pin(store, config.name, "previous", before.digest)
        pin(store, config.name, "champion", version.digest)
        if unanchored:
            pin(store, config.name, "anchor", (serving or version).digest)
    if moves:
        versions.unmark(registry, version, "deployed")
        versions.move_champion(registry, version)
    if evaluation is None:
        # A person's word is stronger than that of an earlier night.
        versions.unmark(registry, version, "rolled_back")
        if reason:
            versions.note(registry, version, "promoted because", reason)
    to_deploy = moves or "deployed" not in version.marks
    if to_deploy:
        announce(config, version, reason or (said(decision) if decision else ""))
    if evaluation is None:
        why = f"version {version.version} serves instead"
        said_of_rows = now_serves(store, config.name, version.digest, why)
        notes = (*notes, said_of_rows) if said_of_rows else notes
    return Promotion(version, "champion", "", to_deploy, decision, notes)


def name_anchor(config: Config, version: ModelVersion, reason: str) -> None:
    """Hold the line's later models against another of its versions than the one it began with.

    Only a person does so, as what was lost until then is forgiven. Nothing else changes: what
    serves goes on serving.

    Args:
        config: Names line and state folder.
        version: Of the line.
        reason: Kept with the version.

    Raises:
        ConfigError: If there is no reason.
        ArtifactError: If a byte of the model is wrong.
    """
    if not reason.strip():
        raise ConfigError(
            "--reason: is empty; say why later models may be held against version "
            f"{version.version} instead of what the line began with"
        )
    store = Store(config.state.resolve())
    verify_to_serve(store, store.ref("model", version.digest))
    versions.note(registry_of(config), version, "anchor because", reason.strip())
    pin(store, config.name, "anchor", version.digest)


def standing(config: Config, version: ModelVersion) -> Outcome:
    """Tell whether a registered version is the champion already, or waits for a person's word."""
    serving = versions.champion(registry_of(config))
    same = serving is not None and serving.version == version.version
    return "champion" if same else "challenger"


def roll_back(config: Config) -> ModelVersion:
    """Let the version serve that did before the champion, and emit `model.promoted` for it.

    Repeated before that version is deployed it announces it again, and goes back no further.

    Raises:
        ConfigError: If there is no champion or nothing before it.
        ArtifactError: If a byte of the earlier model is wrong.
    """
    registry = registry_of(config)
    serving = versions.champion(registry)
    if serving is None:
        raise ConfigError(f"{config.name}: has no champion; there is nothing to roll back")
    if "deployed" not in serving.marks and _took_over(registry, serving):
        announce(config, serving)
        now_serves(Store(config.state.resolve()), config.name, serving.digest, "rolled back")
        return serving
    if serving.replaced is None:
        raise ConfigError(
            f"{config.name}: version {serving.version} is the first champion; promote another "
            "version with `requant promote CONFIG --version N`"
        )
    earlier = versions.version_of(registry, serving.replaced)
    store = Store(config.state.resolve())
    verify_to_serve(store, store.ref("model", earlier.digest))
    with naming_full_disk("rollback", store.root, "what served before goes on serving"):
        pin(store, config.name, "champion", earlier.digest)
    versions.mark(registry, serving, "rolled_back")
    versions.unmark(registry, earlier, "deployed")
    versions.move_champion(registry, earlier, back=True)
    announce(config, earlier)
    # Last: a head of the line that cannot be believed must keep nobody from a rollback.
    now_serves(store, config.name, earlier.digest, "rolled back")
    return earlier


def _refuse_known(version: ModelVersion, serving: ModelVersion | None) -> None:
    """Keep the night from undoing what a person, or a newer night, decided."""
    if when := version.marks.get("rolled_back"):
        raise GateError(
            f"promote: this model was rolled back at {when}; it serves again only when a "
            "person says so: requant promote CONFIG --version N"
        )
    if serving is not None and version.version < serving.version:
        raise GateError(
            f"promote: version {version.version} is older than the champion, version "
            f"{serving.version}; requant promote CONFIG --version {version.version} lets it serve"
        )


def _took_over(registry: Registry, serving: ModelVersion) -> bool:
    """Tell whether the champion serves because a later version was rolled back."""
    return any(
        item.replaced == serving.version and "rolled_back" in item.marks
        for item in versions.all_versions(registry)
    )


def announce(config: Config, version: ModelVersion, reason: str = "") -> None:
    """Emit `model.promoted`, which starts the deployment deploy-model on a server."""
    _emit(PROMOTED, config, version, reason=reason, verdict="promote")


def resource_of(line: str) -> dict[str, str]:
    """Return the label of a model line's events that triggers match."""
    return {"prefect.resource.id": f"model.{line}"}


def _emit(event: str, config: Config, version: ModelVersion, **more: str) -> None:
    emit_event(
        event,
        resource={
            **resource_of(config.name),
            "prefect.resource.name": f"{config.name} v{version.version}",
        },
        payload={
            "model": config.name,
            "version": version.version,
            "digest": version.digest,
            "model_id": version.model_id,
            "scores": dict(version.scores),
            **more,
        },
    )
