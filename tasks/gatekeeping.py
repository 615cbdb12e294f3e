"""Whether tonight's model may serve: the verdict of its evaluation, and what the year has left."""

from datetime import UTC, datetime

from requant.canonical import digest_of
from requant.config import Config
from requant.errors import ConfigError, GateError
from requant.evaluation.artifact import MODELS, read_pools
from requant.evaluation.night_verdict import idle_guards, read_verdict
from requant.gate import Decision, Look, grant
from requant.store import StageRecord, Store, materialise
from requant.store.looks import add_look, read_looks
from requant.store.pins import holder
from requant.wording import few
from tasks.tracking.registry import Judged, ModelVersion

WAY_OUT = "a person promotes it with `requant promote CONFIG --reason TEXT`"


def advice(config: Config, serving: ModelVersion | None, evaluation: StageRecord) -> Decision:
    """Return the verdict of tonight's evaluation by itself: nothing is spent or promoted by it."""
    store, gate = Store(config.state.resolve()), config.evaluate.gate
    try:
        _require_held(store, config, serving, evaluation)
    except GateError as error:
        return Decision("not enough evidence", (str(error),), (), gate.alpha, None)
    return read_verdict(materialise(store, evaluation.digest), gate)


def spend(
    config: Config, serving: ModelVersion | None, evaluation: StageRecord
) -> tuple[Decision, tuple[str, ...]]:
    """Judge tonight's model with what the year's chance of harm has left, and write it down.

    Args:
        config: Names line, state folder and rules.
        serving: The champion; None where there is none.
        evaluation: Of tonight's model.

    Returns:
        The verdict, and what a person should know of the gate.

    Raises:
        GateError: If the champion or the anchor was not evaluated with tonight's model.
        ArtifactError: If the ledger cannot be believed.
    """
    store, gate = Store(config.state.resolve()), config.evaluate.gate
    _require_held(store, config, serving, evaluation)
    inputs = evaluation.key_fields["inputs"]
    test = (inputs["requantized"], inputs.get("champion") or inputs["base"], _documents(evaluation))
    today = datetime.now(UTC).date().isoformat()
    looks = read_looks(store, config.name)
    given = grant(looks, test, today, gate.harm_a_year, gate.tests_a_year)
    folder = materialise(store, evaluation.digest)
    decision = read_verdict(folder, gate, given.alpha)
    add_look(store, config.name, Look(*test, today, given.alpha, decision.verdict))
    notes = idle_guards(gate, read_pools(folder))
    if not given.alpha:
        notes.append(
            f"evaluate.gate.harm_a_year: the chance of a harmful promotion of {gate.harm_a_year:g} "
            f"in 365 days is given out; there is some again on {given.next_day}"
        )
    return decision, tuple(notes)


def _require_held(
    store: Store, config: Config, serving: ModelVersion | None, evaluation: StageRecord
) -> None:
    """Refuse a verdict that is held against less than the line has: a lost model would be a way."""
    inputs = evaluation.key_fields["inputs"]
    judges = {inputs.get(role) for role in ("champion", "anchor")}
    wanted = {"anchor": holder(store, config.name, "anchor")}
    if serving is not None:
        wanted = {f"champion, version {serving.version}": serving.digest, **wanted}
    for who, digest in wanted.items():
        if digest and digest not in {*judges, inputs["requantized"]}:
            raise GateError(
                f"promote: the {who} ({digest[:12]}), was not evaluated beside tonight's model: "
                "its artifact is not in the state folder, or another served when the night began. "
                f"Run the night again, or {WAY_OUT}"
            )


def refusal(decision: Decision) -> str:
    """Say why a model is not promoted, and the way out, a reason a line."""
    lines = [f"promote: {decision.verdict}", *(f"- {reason}" for reason in decision.reasons)]
    if decision.outlook:
        lines.append(
            f"{decision.outlook}: prepare_data.max_evaluation_rows, and more held-out rows"
        )
    return "\n".join([*lines, f"what served before goes on serving; {WAY_OUT}"])


def require_reason(
    config: Config, version: ModelVersion, serving: ModelVersion | None, reason: str
) -> None:
    """Have a person who overrides the gate say why.

    Args:
        config: Of the line, as it is now.
        version: What is to serve.
        serving: What serves; None where nothing does.
        reason: Of the person.

    Raises:
        ConfigError: With the gate's verdict.
    """
    if serving is not None and serving.version == version.version:
        return
    if reason.strip():
        return
    if when := version.marks.get("rolled_back"):
        raise ConfigError(
            f"--reason: is empty, and version {version.version} was rolled back at {when}; say why "
            'it serves again: --reason "..."'
        )
    judged = version.judged
    # A verdict against a model that serves no more says nothing of the one that does.
    now = judged_by(config, serving, judged.verdict)
    if judged.verdict.startswith("promote") and judged == now:
        return
    told = judged.verdict.partition(";")[0] or "it gave no verdict"
    other = "" if judged.rules == now.rules else ", by another section evaluate or anchor"
    raise ConfigError(
        f"--reason: is empty, and the gate did not say promote of version {version.version} "
        f"against what serves now ({told}{other}); say why it serves all the same: "
        '--reason "..."'
    )


def judged_by(config: Config, serving: ModelVersion | None, verdict: str) -> Judged:
    """Return a verdict with what it is held against and by which rules, as a version keeps it.

    Which tasks are evaluated says what guards, so the rules are all of `evaluate`, and the anchor.

    Args:
        config: Of the line.
        serving: The champion; None for the base.
        verdict: On one line.
    """
    against = serving.digest if serving else ""
    evaluate = config.evaluate.model_dump(mode="json", exclude={"batch_size", "steps_between"})
    anchor = holder(Store(config.state.resolve()), config.name, "anchor")
    rules = digest_of({"evaluate": evaluate, "anchor": anchor})
    return Judged(verdict, against, rules)


def said(decision: Decision) -> str:
    """Say a verdict on one line."""
    return f"{decision.verdict}: {few(decision.reasons)}"


def _documents(evaluation: StageRecord) -> str:
    """Digest what may be looked at, and by which rules: more of it looked at is the same test."""
    fields = evaluation.key_fields
    inputs = {r: d for r, d in fields["inputs"].items() if r not in {*MODELS, "adapter"}}
    how = {name: value for name, value in fields["config"].items() if name != "batch_size"}
    return digest_of(
        {"inputs": inputs, "config": how, "seed": fields["seed"], "libraries": fields["libraries"]}
    )
