"""A night of the ledger from its beginning to its outcome; each step replaces the line's head once.

    begin   who begins anew notes when; who goes on with a killed night finds when that began
    took    the rows that it read, then the ledger with what it decided of them
    end     the ledger becomes the line's, and the night's outcome is known

Killed before `took`, the night has taken nothing, and reads its sources again. Killed after it, it
goes on with the rows that it took: what came to the sources later waits.
"""

from datetime import UTC, datetime

from requant.errors import ConfigError, ContractError
from requant.ledger.document import EMPTY, Ledger, read_ledger
from requant.store import Store, materialise
from requant.store.lines import SET_ASIDE, Begun, Line, Outcome, Verdict, change_line, read_line
from requant.store.locks import is_held, whose
from requant.store.pins import holder


def begin(store: Store, name: str) -> Line:
    """Begin a night of a line, or find the one that was begun and did not end.

    One that goes on after its own model was promoted builds on the same generation as before; one
    whose parent was taken back meanwhile builds on what serves now, with the rows that it took.

    Raises:
        ArtifactError: If the head of the line cannot be believed.
    """
    champion = holder(store, name, "champion")

    def begun(line: Line) -> Line:
        line = _served(line, champion, "another version serves") if champion else line
        parent = champion or _newest_accepted(line)
        now = line.begun or Begun(at=datetime.now(UTC).isoformat(), parent=parent)
        if now.parent != parent and (parent is None or parent != now.model):
            now = now.model_copy(update={"parent": parent, "model": None})
        return line.model_copy(update={"begun": now})

    return change_line(store, name, begun)


def took(
    store: Store,
    name: str,
    *,
    rows: str | None = None,
    ledger: str | None = None,
    model: str | None = None,
) -> None:
    """Note what a begun night has read, decided or made, so that no collection takes it.

    Args:
        store: Of the line.
        name: Of the line.
        rows: Digest of the artifact of its rows.
        ledger: Digest of its ledger.
        model: Digest of what it ships.

    Raises:
        ContractError: If no night of the line has begun.
    """
    given = {"rows": rows, "ledger": ledger, "model": model}
    more = {field: value for field, value in given.items() if value}

    def noted(line: Line) -> Line:
        if line.begun is None:
            raise ContractError(
                f"{store.line_path(name)}: says that no night has begun, and one is running: it "
                "was changed meanwhile; run the night again"
            )
        return line.model_copy(update={"begun": line.begun.model_copy(update=more)})

    change_line(store, name, noted)


def end(store: Store, name: str, outcome: Outcome | None) -> None:
    """End the begun night of a line.

    Args:
        store: Of the line.
        name: Of the line.
        outcome: None of a night that had nothing to do: it took no row.
    """

    def ended(line: Line) -> Line:
        if line.begun is None:
            return line
        digest = line.begun.ledger
        after = ledger_of(store, digest)
        if digest is None or (outcome is None and same_rows(ledger_of(store, line.ledger), after)):
            return line.model_copy(update={"begun": None})
        nights = dict(line.nights)
        if outcome:
            came = {"parent": line.begun.parent, "began": line.begun.at}
            nights[after.night] = outcome.model_copy(update=came)
        return Line(ledger=digest, begun=None, nights=nights)

    change_line(store, name, ended)


def now_serves(store: Store, name: str, model: str, reason: str) -> str:
    """Settle the nights of a line after a person let one of its models serve.

    The night that made it and those it descends from are accepted, the others are not any more.

    Args:
        store: Of the line.
        name: Of the line.
        model: Digest of what serves.
        reason: Of the person, for the nights that are not accepted any more.

    Returns:
        What a person should know; empty where all is said by the outcomes.
    """
    line = change_line(store, name, lambda line: _served(line, model, reason))
    ours = _maker(line, model)
    if ours is None or line.nights[ours].verdict == "accepted":
        return ""
    return (
        f"the rows of night {ours}, which made this model, are {line.nights[ours].verdict}: they "
        "stay so, whatever the model has learned"
    )


def _served(line: Line, model: str, reason: str) -> Line:
    """Return a head in which a model and those it descends from are accepted, and no others."""
    ours = _maker(line, model)
    if ours is None:
        return line
    ancestors: set[int] = set()
    night: int | None = ours
    while night is not None and night not in ancestors:
        ancestors.add(night)
        night = _maker(line, line.nights[night].parent or "")
    changes: dict[int, dict[str, str]] = {}
    for number, outcome in line.nights.items():
        if number == ours and outcome.verdict in SET_ASIDE:
            # Why it was set aside holds no more.
            changes[number] = {"verdict": "accepted", "reason": ""}
        elif number not in ancestors and outcome.verdict == "accepted":
            changes[number] = {"verdict": "refused", "reason": reason}
    settled = {n: line.nights[n].model_copy(update=change) for n, change in changes.items()}
    return line.model_copy(update={"nights": line.nights | settled})


def _maker(line: Line, model: str) -> int | None:
    """Return the number of the last night that made a model."""
    return max((n for n, outcome in line.nights.items() if outcome.model == model), default=None)


def _newest_accepted(line: Line) -> str | None:
    """Return what the last accepted night made: the parent where no model serves."""
    made = [each.model for each in line.nights.values() if each.verdict == "accepted"]
    return made[-1] if made else None


def decide_set_aside(store: Store, name: str, night: int, verdict: Verdict, reason: str) -> int:
    """Release or discard the rows of a night that was refused, or that never ended.

    Args:
        store: Of the line.
        name: Of the line.
        night: Its number.
        verdict: released or discarded.
        reason: Of the person.

    Returns:
        How many rows that are.

    Raises:
        ConfigError: If a night is in progress, or this one has no rows set aside, with those that
            have.
    """

    def decided(line: Line) -> Line:
        now = line.nights.get(night)
        if now is None or now.verdict not in SET_ASIDE:
            others = [n for n, outcome in line.nights.items() if outcome.verdict in SET_ASIDE]
            state = f"is {now.verdict}" if now else "is no night of this line that ended"
            listed = ", ".join(map(str, others)) or "none"
            raise ConfigError(
                f"night {night}: {state}; rows are set aside of nights: {listed} "
                "(requant data status CONFIG)"
            )
        outcome = now.model_copy(update={"verdict": verdict, "reason": reason or now.reason})
        return line.model_copy(update={"nights": line.nights | {night: outcome}})

    if is_held(lock := store.night_lock(name)):
        raise ConfigError(f"night {night}: a night of {name} is in progress: {whose(lock)}; wait")
    begun = read_line(store, name).begun
    if begun and begun.model and begun.model == holder(store, name, "champion"):
        raise ConfigError(
            f"night {night}: its model {begun.model[:12]} serves already, and it only has to end: "
            "run it again"
        )
    if begun and begun.ledger and ledger_of(store, begun.ledger).night == night:
        end(store, name, Outcome(verdict="refused", reason="it never ended"))
    line = change_line(store, name, decided)
    counts = ledger_of(store, line.ledger).counts
    return sum(each.rows for each in counts if (each.decided, each.night) == ("taken", night))


def ledger_of(store: Store, digest: str | None) -> Ledger:
    """Return a ledger of a store; of a line that has none the empty one.

    Raises:
        ArtifactError: If the store does not hold it.
    """
    return EMPTY if digest is None else read_ledger(materialise(store, digest))


def same_rows(before: Ledger, after: Ledger) -> bool:
    """Tell whether a night changed nothing: it read no row, and moved none."""
    return before.rows == after.rows and before.counts == after.counts
