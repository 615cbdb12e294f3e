"""Rows as the model sees them: token ids, which of them carry loss, and what did not fit."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from requant.data.chat_template import (
    Dialect,
    RowError,
    Rules,
    dialect,
    ends_turn,
    read_rules,
    refuse_endless,
    render,
)
from requant.data.checks import check_control, check_rendered
from requant.data.faults import Fault, listed
from requant.data.formats import Row
from requant.data.turns import IGNORED, Clipped, Sample, TooLong, encode_turn, fit, sample_of
from requant.errors import ContractError
from requant.execution.progress import told
from requant.execution.stage import Reporter
from requant.outside.tokenizer_patterns import naming_patterns


@dataclass(frozen=True)
class RowReport:
    """What is wrong with rows, and what is in them."""

    faults: tuple[Fault, ...]
    counts: dict[str, float]
    """rows, samples, tokens, trained_tokens, cut_samples, dropped_samples (turns without a prompt
    among them), lost_tokens, straddling_tokens, turns_without_loss, turns_without_prompt and
    rows_with_control_text."""

    @property
    def problems(self) -> list[str]:
        """One line each, naming places and rule."""
        return listed(self.faults)


@dataclass(frozen=True)
class Encoded:
    """Samples of rows, and how they came about."""

    samples: list[Sample]
    report: RowReport


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Read the rows of a prepared .jsonl file, the first `limit` of them."""
    with path.open(encoding="utf-8") as file:
        lines = list(islice(file, limit))
    return [json.loads(line) for line in lines]


def placed(path: Path, limit: int | None = None) -> list[tuple[str, Row]]:
    """Read rows of a prepared file with the line each stands on."""
    return [
        (f"{path.name}, line {number}", row) for number, row in enumerate(read_rows(path, limit), 1)
    ]


def encode_data(
    tokenizer: Any,
    path: Path,
    max_length: int,
    too_long: TooLong,
    reporter: Reporter | None = None,
) -> Encoded:
    """Encode a file of a dataset artifact for training, by the artifact's rules.

    Raises:
        ContractError: Naming every kind of problem and its first rows, or if nothing is left.
    """
    heard = told(placed(path), reporter, "rows encoded")
    encoded = encode_rows(tokenizer, heard, read_rules(path.parent), max_length, too_long)
    if problems := encoded.report.problems:
        raise ContractError("\n".join([f"{path.name}: cannot be trained on", *problems]))
    if not encoded.samples:
        raise ContractError(f"{path.name}: {nothing_left(encoded.report.counts, max_length)}")
    return encoded


def too_long_for_all(counts: dict[str, float]) -> bool:
    """Tell whether it is the length for which turns were dropped, and not what the rows are."""
    return counts["dropped_samples"] > counts["turns_without_prompt"]


def nothing_left(counts: dict[str, float], max_length: int) -> str:
    """Say why there is nothing to train on, and the way out of each reason."""
    without_loss, without_prompt = counts["turns_without_loss"], counts["turns_without_prompt"]
    long = counts["dropped_samples"] - without_prompt
    reasons = [
        f"{number:.0f} {what}"
        for number, what in (
            (long, f"do not fit into optimisation.max_length={max_length} tokens (raise it)"),
            (without_loss, "have weight 0 (give the turns that are to be learned weight 1)"),
            (without_prompt, "have no message before them (give each the question it answers)"),
        )
        if number
    ]
    found = f"of the assistant turns {', '.join(reasons)}" if reasons else "every text is one token"
    return f"nothing to learn in {counts['rows']:.0f} rows: {found}"


def summary(counts: dict[str, float]) -> str:
    """Say in one line what became samples and what did not."""
    return (
        f"{counts['rows']:.0f} rows, {counts['samples']:.0f} samples, "
        f"{counts['trained_tokens']:.0f} of {counts['tokens']:.0f} tokens carry loss; "
        f"{counts['cut_samples']:.0f} samples cut, {counts['dropped_samples']:.0f} dropped, "
        f"{counts['lost_tokens']:.0f} tokens lost; "
        f"{counts['turns_without_loss']:.0f} assistant turns without loss"
    )


def check_rows(
    tokenizer: Any,
    rows: Iterable[tuple[str, Row]],
    rules: Rules,
    max_length: int | None = None,
    too_long: TooLong = "cut",
) -> RowReport:
    """Render and encode every row as training will; return all that is wrong with them.

    Args:
        tokenizer: Of the model that is trained.
        rows: Place (file and line) and row, in the project's shape.
        rules: Of the dataset.
        max_length: Tokens a sample may have; None for any number.
        too_long: What happens to longer ones.
    """
    return encode_rows(tokenizer, rows, rules, max_length, too_long).report


def encode_rows(
    tokenizer: Any,
    rows: Iterable[tuple[str, Row]],
    rules: Rules,
    max_length: int | None,
    too_long: Clipped = "cut",
) -> Encoded:
    """Encode every assistant turn that carries loss as one sample, and every plain text.

    Each turn is rendered as the last one, because that is how the model will meet it: templates
    such as Qwen3's render the last assistant turn differently from earlier ones. The ids are those
    of the whole conversation as the template gives them. Loss begins where they part from the ids
    of the prompt, which is what a served model is given: a token across the cut carries loss.

        [/INST] + Paris.</s>   prompt  _[ / INST ]        whole  _[ / INST ] _Paris . </s>
                               labels   .  .  .   .  Paris . </s>

    (Offsets would say less: tokenizers that trim them leave the white space to nobody.)

    Args:
        tokenizer: Of the model.
        rows: Place and row.
        rules: Of the dataset.
        max_length: Tokens of a sample; None for any number. A longer plain text becomes several.
        too_long: cut drops the oldest turns, then the beginning of the last question; system
            message, headers and answer stay, or the sample is dropped. drop and refuse do what they
            say. clip, for measuring only, cuts the answer's end too.

    Returns:
        The samples, and a report of the rows that gave none, because something is wrong with them.

    Raises:
        ContractError: If a pattern of the tokenizer gives up; each row more would take as long.
    """
    words = dialect(tokenizer, rules)
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    samples: list[Sample] = []
    for place, row in rows:
        counts["rows"] += 1
        made = encode_row(words, place, row, max_length, too_long, counts)
        if isinstance(made, Fault):
            faults.append(made)
        else:
            samples += made
    counts["samples"] = len(samples)
    counts["tokens"] = sum(len(sample["input_ids"]) for sample in samples)
    counts["trained_tokens"] = sum(
        label != IGNORED for sample in samples for label in sample["labels"]
    )
    return Encoded(samples, RowReport(tuple(faults), _named(counts)))


def encode_row(
    words: Dialect,
    place: str,
    row: Row,
    max_length: int | None,
    too_long: Clipped,
    counts: Counter[str],
) -> list[Sample] | Fault:
    """Encode one row as `encode_rows` does, or say what is wrong with it.

    Args:
        words: Tokenizer and rules.
        place: Of the row.
        row: In the project's shape.
        max_length, too_long: As `encode_rows`.
        counts: Is added to.

    Raises:
        ContractError: If a pattern of the tokenizer gives up.
    """
    try:
        with naming_patterns(words.tokenizer, place):
            return list(_row_samples(words, row, max_length, too_long, counts))
    except RowError as error:
        return Fault(place, error.kind, str(error), error.of_template)


def _row_samples(
    words: Dialect,
    row: Row,
    max_length: int | None,
    too_long: Clipped,
    counts: Counter[str],
) -> Iterator[Sample]:
    as_text = check_control(words, row)
    counts["rows_with_control_text"] += as_text
    if "text" in row:
        yield from _text_samples(words, row["text"], as_text, max_length, counts)
        return
    messages = row["messages"]
    whole = render(words, messages, row)
    check_rendered(words, row, whole)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if message.get("weight") == 0:
            counts["turns_without_loss"] += 1
            continue
        if index == 0:
            if too_long == "refuse":
                raise RowError(
                    "no prompt",
                    "messages[0] (assistant): nothing stands before this turn; give it a question "
                    "or weight 0, or set optimisation.too_long=drop",
                )
            counts["dropped_samples"] += 1
            counts["turns_without_prompt"] += 1
            continue
        last = index == len(messages) - 1
        turn = encode_turn(words, messages[: index + 1], row, as_text, whole if last else None)
        counts["straddling_tokens"] += turn.prompt_tokens - turn.start
        if words.rules.end_token == "require" and not ends_turn(words, turn.ids):
            raise refuse_endless(words)
        fitted = fit(words, messages[: index + 1], row, as_text, turn, max_length, too_long)
        kept = 0 if fitted is None else len(fitted["input_ids"])
        counts["lost_tokens"] += len(turn.ids) - kept
        counts["cut_samples"] += 0 < kept < len(turn.ids)
        counts["dropped_samples"] += fitted is None
        if fitted is not None:
            yield fitted


def _text_samples(
    words: Dialect, text: str, as_text: bool, max_length: int | None, counts: Counter[str]
) -> Iterator[Sample]:
    tokenizer = words.tokenizer
    ids = list(tokenizer(text, split_special_tokens=as_text)["input_ids"])
    # Without it the model would not learn where a text ends.
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    size = max_length or len(ids)
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        # The first token of a sample is predicted from nothing, so a lone one teaches nothing.
        if len(piece) > 1:
            yield sample_of(piece, 0)
        else:
            counts["lost_tokens"] += 1


def _named(counts: Counter[str]) -> dict[str, float]:
    names = (
        "rows",
        "samples",
        "tokens",
        "trained_tokens",
        "cut_samples",
        "dropped_samples",
        "lost_tokens",
        "straddling_tokens",
        "turns_without_loss",
        "turns_without_prompt",
        "rows_with_control_text",
    )
    return {name: float(counts[name]) for name in names}
