"""deploy_model: what the flow of this name does with a promoted version, once for each digest."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, ValidationError

from requant.canonical import digest_of
from requant.config import Config
from requant.errors import ArtifactError, ConfigError, ContractError
from requant.machine.withheld import withheld
from requant.models.device import resolve_device
from requant.models.folder import CORRECTION_NAME
from requant.redaction import Redact
from requant.serving.deploy import act, check_release, still_there
from requant.serving.release import Release
from requant.store import Store, locked, materialise
from requant.store.documents import read_sealed, write_sealed
from requant.store.room import naming_full_disk
from tasks.nightly.reporter import keep_log_readable
from tasks.promote import registry_of
from tasks.retry import may_retry
from tasks.secrets import redactor_of, resolve_secret, secrets_of
from tasks.tracking import registry as versions

DELAY_SECONDS = [10.0, 60.0]


class Deployment(BaseModel):
    """What was deployed last of a model, as JSON in the state folder."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    digest: str
    action: str
    """Digest of the configured action: another one deploys the same model again."""
    when: datetime
    answer: str
    """What the model answered to the smoke prompt."""
    done: str


def deploy_model(config: Config, version: int | None, digest: str | None) -> str:
    """Deploy the champion, unless it is deployed already; return what was done, in words.

    Args:
        config: The model line.
        version: It must still be the champion, or nothing is done: events may come late.
        digest: The version must have it; None for any.

    Raises:
        ConfigError: If none is named and there is no champion.
        ContractError: If the version has another digest.
        Exception: As `requant.serving.deploy.check_release` and `act`; the former model goes on
            serving.
    """
    redact = redactor_of(config)
    with withheld(redact):
        return _deploy(config, version, digest, redact)


def _deploy(config: Config, version: int | None, digest: str | None, redact: Redact) -> str:
    keep_log_readable()
    registry = registry_of(config)
    store = Store(config.state.resolve())
    action = digest_of(config.deploy.model_dump(mode="json"))
    with (
        locked(store.lock_path(f"deploy-{config.name}")),
        naming_full_disk("deploy", store.root, "it is not known to be deployed"),
    ):
        serving = versions.champion(registry)
        if serving is None and version is None:
            raise ConfigError(f"{config.name}: has no champion; `requant promote CONFIG` makes one")
        if serving is None or (version is not None and version != serving.version):
            now = f"version {serving.version}" if serving else "none"
            return f"{config.name}: version {version} is not the champion ({now} is)"
        if digest is not None and digest != serving.digest:
            raise ContractError(
                f"{config.name}: version {serving.version} has digest {serving.digest[:12]}, the "
                f"event names {digest[:12]}; promote it again"
            )
        ref = store.ref("model", serving.digest)
        section = config.deploy
        release = Release(
            config.name, serving.version, serving.digest, ref.uri, dict(serving.scores)
        )
        last = read_deployment(store, config.name)
        if (
            last is not None
            and (last.digest, last.action) == (serving.digest, action)
            and still_there(section.action, release)
        ):
            versions.mark(registry, serving, "deployed")
            return f"{config.name}: version {serving.version} is deployed already: {last.done}"
        said = _step(check_release, "load-cold", redact)(
            store,
            ref,
            section.smoke_prompt,
            section.smoke_tokens,
            resolve_device(config.runtime.device),
        )
        folder = materialise(store, serving.digest)
        # What stops between here and the new record has changed nobody knows what.
        store.deployment_path(config.name).unlink(missing_ok=True)
        done = _step(act, "act", redact)(
            section.action, release, folder, resolve_secret, secrets_of(config)
        )
        record = Deployment(
            model=config.name,
            version=serving.version,
            digest=serving.digest,
            action=action,
            when=datetime.now(UTC),
            answer=said,
            done=done,
        )
        path = store.deployment_path(config.name)
        write_sealed(store, path, record.model_dump(mode="json"))
        versions.mark(registry, serving, "deployed")
    beside = (
        f"; its LoRA in {CORRECTION_NAME}/ is part of it: a server that does not load that serves "
        "another model than was evaluated"
    )
    return f"{config.name}: version {serving.version} {done}; it answers {said!r}" + (
        beside if (folder / CORRECTION_NAME).is_dir() else ""
    )


def read_deployment(store: Store, model: str) -> Deployment | None:
    """Return what was deployed last, None where nothing was or the record cannot be believed."""
    try:
        return Deployment.model_validate(read_sealed(store, store.deployment_path(model)))
    except (FileNotFoundError, ArtifactError, ValidationError):
        return None


def _step(function: Callable[..., str], name: str, redact: Redact) -> Task[..., str]:
    def body(*words: Any) -> str:
        # What it raises is the task's state in Prefect, before the flow has it.
        with withheld(redact):
            return function(*words)

    return Task(
        body,
        name=name,
        retries=len(DELAY_SECONDS),
        retry_delay_seconds=DELAY_SECONDS,
        retry_condition_fn=may_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
