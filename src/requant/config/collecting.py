"""collect_rows and extend_ledger: what is new since the last night, and what becomes of it."""

from pydantic import Field, model_validator

from requant.config.data import NightSize, RowRules
from requant.config.section import NOT_IN_KEY, Fraction, LocalPath, Positive
from requant.config.sources import RowSource


class CollectRows(RowRules):
    """Rows of the sources that no earlier night has read."""

    enabled: bool = Field(
        False, description="nights learn what is new; false: prepare_data.source, every night"
    )
    sources: tuple[RowSource, ...] = Field((), description="read anew every night, in this order")
    max_new_rows: Positive = Field(
        200_000, description="new rows read in one night; later nights read the others"
    )
    max_bad_share: Fraction = Field(
        0.05,
        description="of a source's new rows that may be unreadable: more, and the source is taken "
        "for broken and the night ends; fewer are quarantined",
    )

    @model_validator(mode="after")
    def _names_are_apart(self) -> "CollectRows":
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"sources: two are named {', '.join(map(repr, twice))}; rows are told apart by the "
                "name of their source: give each its own"
            )
        if self.enabled and not names:
            raise ValueError(
                "sources: is empty with enabled=true; name at least one, e.g. "
                "{kind: files, name: chats, paths: [data/chats]}"
            )
        return self


class ExtendLedger(NightSize):
    """What becomes of each new row; it runs where collect_rows is enabled."""

    min_new_rows: int = Field(
        64,
        ge=2,
        description="training and held-out rows without which there is nothing to do; they wait",
    )
    near_duplicates: float | None = Field(
        0.8,
        ge=0.5,
        le=0.99,
        description="Jaccard similarity of word runs from which on a row repeats an earlier one; "
        "null: only equal rows do",
    )
    reservoir_rows: Positive = Field(
        4096, description="rows kept of all that the line was trained on, for replay"
    )
    consolidate_every: int | None = Field(
        None,
        ge=1,
        description="nights; every so many generations one trains the original on the reservoir "
        "and the new rows, whatever generations.policy; null: never",
    )
    evaluation_text: tuple[LocalPath, ...] = Field(
        (),
        description="files of text (.txt, .jsonl, ...) by which models are judged: rows that share "
        "13 words in a row with them are not trained on",
        json_schema_extra=NOT_IN_KEY,
    )
