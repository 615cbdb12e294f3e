"""write_replay: rows that the original base writes itself, for nights that are not to forget it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from requant.canonical import canonical_json
from requant.config.data import WriteReplay
from requant.data.artifact import CARD_NAME, WRITTEN
from requant.data.chat_template import Dialect, dialect
from requant.data.formats import Row
from requant.data.rows import write_jsonl
from requant.data.written import (
    RULES,
    SWITCH,
    Kept,
    Say,
    Turns,
    beginning,
    conversations,
    keep,
    texts,
)
from requant.errors import ContractError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.models.tokenizer import load_tokenizer

Write = Callable[[Sequence[str], Say], Iterator[Row]]
"""`(names, say) -> rows`, of each name one at most."""
TRIES = 4
"""Times `rows` that are tried at most: a base of which three rows of four cannot be used has little
to say, and would take the night."""


def execute(section: WriteReplay, context: StageContext, *, base: Path) -> Metrics:
    """Let the base write rows until enough of them can be used.

    Rows that are empty, that do not end, that spell control tokens, that its own template cannot
    render, or that repeat an earlier one are left out, and counted by reason.

    Args:
        section: How many rows, and how tokens are drawn.
        context: Of the stage; the seed alone decides what is drawn.
        base: The 16-bit original.

    Returns:
        written_rows, tried_rows, left_out_rows and missing_rows (of those that were asked for).

    Raises:
        ContractError: If the chat template leaves no place where the base could begin, or if no row
            can be used.
    """
    words = dialect(load_tokenizer(base), RULES)
    kept, tried, most = Kept(), 0, TRIES * section.rows
    write = _writer(words, kept)
    say = _voice(section, context, base, words)
    context.reporter.progress(0, section.rows, "rows written")
    while len(kept.rows) < section.rows and tried < most:
        # Always whole batches: a row alone takes a quarter of the time of sixteen.
        count = min(section.batch_size, most - tried)
        # A row is named by its try, so that no two draw the same.
        for row in write([str(number) for number in range(tried, tried + count)], say):
            if len(kept.rows) < section.rows:
                keep(words, row, kept)
            else:
                kept.left_out["more than asked for"] += 1
        tried += count
        context.reporter.progress(len(kept.rows), section.rows, "rows written")
    for line in _said(section, kept, tried):
        context.reporter.message(line)
    if not kept.rows:
        raise ContractError(
            f"write_replay: none of {tried} rows that the base wrote can be used: "
            f"{_reasons(kept.left_out)}; raise write_replay.max_tokens={section.max_tokens}, "
            f"lower write_replay.temperature={section.temperature:g}, or set {SWITCH} and "
            "prepare_data.replay.written=0"
        )
    write_jsonl(context.out / WRITTEN, kept.rows)
    card = {"rows": len(kept.rows), "tried": tried, "left_out": dict(sorted(kept.left_out.items()))}
    (context.out / CARD_NAME).write_bytes(canonical_json(card))
    return {
        "written_rows": float(len(kept.rows)),
        "tried_rows": float(tried),
        "left_out_rows": float(kept.left_out.total()),
        "missing_rows": float(section.rows - len(kept.rows)),
    }


def _writer(words: Dialect, kept: Kept) -> Write:
    """Return what writes rows: conversations where the base has a chat template, else texts."""
    begin = beginning(words)
    if isinstance(begin, Turns):
        return lambda names, say: conversations(words, begin, names, say, kept.left_out)
    return lambda names, say: texts(words, begin, names, say, kept.left_out)


def _voice(section: WriteReplay, context: StageContext, base: Path, words: Dialect) -> Say:
    """Load the base, and return what goes on with prompts."""
    from requant.models.load import load_model
    from requant.models.sampling import Sampling, continued

    model = load_model(base, context.device)
    sampling = Sampling(section.max_tokens, section.temperature, section.top_p)
    pad = words.tokenizer.pad_token_id or 0

    def say(
        prompts: Sequence[Sequence[int]], names: Sequence[str], ends: frozenset[int]
    ) -> list[list[int]]:
        seeded = [f"{context.seed}-written-{name}" for name in names]
        return continued(model, prompts, seeded, ends, sampling, pad)

    return say


def _said(section: WriteReplay, kept: Kept, tried: int) -> Iterator[str]:
    rows = len(kept.rows)
    left_out = f"; left out: {_reasons(kept.left_out)}" if kept.left_out else ""
    yield f"{rows} of {tried} rows that the base wrote are kept{left_out}"
    if 0 < rows < section.rows:
        yield (
            f"write_replay.rows={section.rows}: {section.rows - rows} are missing after {tried} "
            f"tries, {TRIES} times as many as were asked for"
        )


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())


STAGE = Stage(
    name="write_replay",
    version=1,
    kind="dataset",
    libraries=("torch", "transformers", "tokenizers"),
    execute=execute,
    artifact="written rows",
    headline=(worded("{} rows written, {} left out", "written_rows", "left_out_rows"),),
)
