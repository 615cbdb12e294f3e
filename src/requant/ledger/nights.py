"""A night of the ledger from its beginning to its outcome; each step replaces the line's head once.

    begin   who begins anew notes when; who goes on with a killed night finds when that began
    took    the rows that it read, then the ledger with what it decided of them
    end     the ledger becomes the line's, and the night's outcome is known

Killed before `took`, the night has taken nothing, and reads its sources again. Killed after it, it
goes on with the rows that it took: what came to the sources later waits.
"""

from datetime import UTC, datetime

from requant.errors import ConfigError
from requant.ledger.document import EMPTY, Ledger, read_ledger
from requant.store import Store, materialise
from requant.store.lines import SET_ASIDE, Begun, Line, Outcome, Verdict, change_line, read_line
from requant.store.locks import is_held, whose
from requant.store.pins import holder


def begin(store: Store, name: str) -> Line:
    """Begin a night of a line, or find the one that was begun and did not end.

    Raises:
        ArtifactError: If the head of the line cannot be believed.
    """
    # A retry after its model was promoted builds on the same generation.
    begun = Begun(at=datetime.now(UTC).isoformat(), parent=holder(store, name, "champion"))
    return change_line(
        store, name, lambda line: line if line.begun else line.model_copy(update={"begun": begun})
    )


def took(store: Store, name: str, *, rows: str | None = None, ledger: str | None = None) -> None:
    """Note what a begun night has read, or decided, so that no collection takes it.

    Args:
        store: Of the line.
        name: Of the line.
        rows: Digest of the artifact of its rows.
        ledger: Digest of its ledger.
    """
    more = {field: value for field, value in (("rows", rows), ("ledger", ledger)) if value}

    def noted(line: Line) -> Line:
        begun = line.begun or Begun(at=datetime.now(UTC).isoformat())
        return line.model_copy(update={"begun": begun.model_copy(update=more)})

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


def settle(store: Store, name: str, model: str, verdict: Verdict, reason: str) -> int | None:
    """Change the outcome of the night that made a model: a person promoted it, or rolled it back.

    Rows that a person released or discarded since stay what they are.

    Returns:
        The night's number; None where no night of the line made the model, or it stays as it is.
    """
    changed: list[int] = []

    def settled(line: Line) -> Line:
        ours = [night for night, outcome in line.nights.items() if outcome.model == model]
        if not ours or line.nights[ours[-1]].verdict in ("released", "discarded", verdict):
            return line
        changed.append(ours[-1])
        changes = {"verdict": verdict, "reason": reason}
        outcome = line.nights[ours[-1]].model_copy(update=changes)
        return line.model_copy(update={"nights": line.nights | {ours[-1]: outcome}})

    change_line(store, name, settled)
    return changed[0] if changed else None


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
