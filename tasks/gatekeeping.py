"""Whether tonight's model may serve: the verdict of its evaluation, and what the year has left."""

from datetime import UTC, datetime

from requant.canonical import digest_of
from requant.config import Config
from requant.config.gate import Gate
from requant.errors import ConfigError, GateError
from requant.evaluation.artifact import MODELS
from requant.evaluation.night_verdict import read_verdict
from requant.gate import Decision, Look, grant
from requant.store import StageRecord, Store, materialise
from requant.store.looks import add_look, read_looks
from requant.wording import few
from tasks.tracking.registry import ModelVersion

WAY_OUT = "a person promotes it with `requant promote CONFIG --reason TEXT`"


def advice(store: Store, gate: Gate, evaluation: StageRecord) -> Decision:
    """Return the verdict as if this were the year's only test: nothing is spent or decided."""
    return read_verdict(materialise(store, evaluation.digest), gate)


def spend(
    config: Config, serving: ModelVersion | None, evaluation: StageRecord
) -> tuple[Decision, str]:
    """Judge tonight's model with what the year's chance of harm has left, and write it down.

    Args:
        config: Names line, state folder and rules.
        serving: The champion; None where there is none.
        evaluation: Of tonight's model.

    Returns:
        The verdict, and what a person should know of what is left of the year.

    Raises:
        GateError: If the champion was not evaluated with tonight's model.
        ArtifactError: If the ledger cannot be believed.
    """
    store, gate = Store(config.state.resolve()), config.evaluate.gate
    inputs = evaluation.key_fields["inputs"]
    if serving is not None and serving.digest != inputs.get("champion"):
        raise GateError(
            f"promote: the champion, version {serving.version} ({serving.digest[:12]}), was not "
            "evaluated beside tonight's model: its artifact is not in the state folder, or another "
            f"served when the night began. Run the night again, or {WAY_OUT}"
        )
    test = (inputs["requantized"], inputs.get("champion") or inputs["base"], _documents(evaluation))
    today = datetime.now(UTC).date().isoformat()
    looks = read_looks(store, config.name)
    given = grant(looks, test, today, gate.harm_a_year, gate.tests_a_year)
    decision = read_verdict(materialise(store, evaluation.digest), gate, given.alpha)
    add_look(store, config.name, Look(*test, today, given.alpha, decision.verdict))
    left = (
        f"evaluate.gate.harm_a_year: the chance of a harmful promotion of {gate.harm_a_year:g} in "
        f"365 days is given out; there is some again on {given.next_day}"
    )
    return decision, "" if given.alpha else left


def refusal(decision: Decision) -> str:
    """Say why a model is not promoted, and the way out, a reason a line."""
    lines = [f"promote: {decision.verdict}", *(f"- {reason}" for reason in decision.reasons)]
    if decision.units_needed is not None:
        lines.append(
            f"about {decision.units_needed} documents of each task would decide: "
            "prepare_data.max_evaluation_rows, and more held-out rows"
        )
    return "\n".join([*lines, f"what served before goes on serving; {WAY_OUT}"])


def require_reason(version: ModelVersion, reason: str) -> None:
    """Have a person who overrides the gate say why.

    Raises:
        ConfigError: With the gate's verdict.
    """
    if not reason.strip() and not version.verdict.startswith("promote"):
        raise ConfigError(
            f"--reason: is empty, and the gate did not say promote of version {version.version} "
            f"({version.verdict or 'it gave no verdict'}); say why it serves all the same: "
            '--reason "..."'
        )


def said(decision: Decision) -> str:
    """Say a verdict on one line."""
    return f"{decision.verdict}: {few(decision.reasons)}"


def _documents(evaluation: StageRecord) -> str:
    """Digest what may be looked at: a test on more of the same documents is the same test."""
    fields = evaluation.key_fields
    section = fields["config"]
    return digest_of(
        {
            "inputs": {r: d for r, d in fields["inputs"].items() if r not in {*MODELS, "adapter"}},
            "tasks": section["tasks"],
            "limit": section["limit"],
            "seed": fields["seed"],
        }
    )
