"""prepare_data: whose conversations a night trains on."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from requant.config.given_names import Name, Repository, Revision
from requant.config.section import (
    NEUTRAL_DEFAULT,
    NOT_IN_KEY,
    LocalPath,
    Positive,
    Relative,
    Section,
)
from requant.config.task_names import DESCRIBE_CHOICE, RESPONSE_CHOICE


class WriteReplay(Section):
    """Rows that the original base writes itself, once for all nights of a line."""

    enabled: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    rows: Positive = Field(
        256, description="rows that are written; a night draws prepare_data.replay.written of them"
    )
    max_tokens: int = Field(
        512, ge=8, description="tokens of a turn; a row with a turn that goes on is left out"
    )
    temperature: Relative = Field(1.0, description="divides the logits; 1: as the base speaks")
    top_p: float = Field(
        0.95, gt=0.0, le=1.0, description="probability of the likeliest tokens that are drawn from"
    )
    batch_size: Positive = Field(
        16, description="rows written at once; it moves last digits, and with them some words"
    )


class StdlibData(Section):
    """Instruction pairs from standard-library docstrings, split by module into nights."""

    kind: Literal["stdlib"]
    night: Positive = Field(1, description="which night's modules to train on, 1 to nights")
    nights: Positive = Field(3, description="nights the training modules are split into")

    @model_validator(mode="after")
    def _night_exists(self) -> "StdlibData":
        if self.night > self.nights:
            raise ValueError(f"night={self.night} is past nights={self.nights}")
        return self


class FilesData(Section):
    """Local JSONL or Parquet files."""

    kind: Literal["files"]
    train: tuple[LocalPath, ...] = Field(
        min_length=1, description=".jsonl or .parquet", json_schema_extra=NOT_IN_KEY
    )
    heldout: LocalPath | None = Field(
        None,
        description=".jsonl or .parquet; null cuts heldout_fraction off train",
        json_schema_extra=NOT_IN_KEY,
    )
    old_text: LocalPath | None = Field(
        None,
        description="plain text of the skill to keep; its perplexity is evaluated",
        json_schema_extra=NOT_IN_KEY,
    )

    @field_validator("train", "heldout")
    @classmethod
    def _known_format(cls, value: tuple[Path, ...] | Path | None) -> tuple[Path, ...] | Path | None:
        paths = value if isinstance(value, tuple) else (value,) if value else ()
        for path in paths:
            if path.suffix not in {".jsonl", ".parquet"}:
                raise ValueError(
                    f"{path} must end in .jsonl or .parquet. JSON, CSV and text: datasets."
                    "load_dataset('json' | 'csv' | 'text', data_files=...)['train'].to_json("
                    "'rows.jsonl') writes one"
                )
        return value


class HubData(Section):
    """A dataset on the Hugging Face hub; the commit its revision resolves to enters the key."""

    kind: Literal["hub"]
    repo: Repository = Field(description="owner/name")
    revision: Revision = Field(
        "main", description="branch, tag or 40-hex commit", json_schema_extra=NOT_IN_KEY
    )
    subset: Name | None = Field(None, description="configuration name; null for the only one")
    train_split: Name = Field("train", description="split name")
    heldout_split: Name | None = Field(None, description="null cuts heldout_fraction off train")


class CollectedData(Section):
    """The rows that extend_ledger takes tonight; what is read and divided is configured there."""

    kind: Literal["collected"]
    old_text: LocalPath | None = Field(
        None,
        description="plain text of the skill to keep; its perplexity is evaluated",
        json_schema_extra=NOT_IN_KEY,
    )


Source = StdlibData | FilesData | HubData | CollectedData


def choice_task(source: Source) -> str:
    """Name the multiple-choice task that is made of a source's held-out rows."""
    return DESCRIBE_CHOICE if isinstance(source, StdlibData) else RESPONSE_CHOICE


class Columns(Section):
    """Names of columns that differ from the usual ones; by those, formats are recognised."""

    messages: Name | None = Field(
        "messages",
        description="column of [{role, content}, ...] or ShareGPT's [{from, value}, ...]; as it "
        "is, each row's format is recognised by its columns",
    )
    prompt: Name | None = Field(None, description="column of the user's text")
    response: Name | None = Field(None, description="column of the assistant's text")
    group: Name | None = Field(
        None,
        description="column whose equal values belong together (a ticket, an author): never split "
        "between training and held-out part, and one document to the gate",
    )

    @model_validator(mode="after")
    def _one_shape(self) -> "Columns":
        pair = self.prompt is not None and self.response is not None
        if pair == (self.messages is not None) or (self.prompt is None) != (self.response is None):
            raise ValueError(
                f"give either messages, or prompt and response (with messages: null); got "
                f"messages={self.messages!r}, prompt={self.prompt!r}, response={self.response!r}"
            )
        return self


class RowRules(Section):
    """How rows are read and rendered."""

    columns: Columns = Columns()
    unknown_fields: Literal["list", "refuse"] = Field(
        "list", description="columns and message fields that nothing reads: count and say, or stop"
    )
    control_tokens: Literal["refuse", "text"] = Field(
        "refuse",
        description="control tokens spelled in a text, which could put words into the "
        "assistant's mouth: stop, or encode them as ordinary text",
    )
    end_token: Literal["require", "allow"] = Field(
        "require",
        description="whether the template may end the assistant's turn without a token that stops "
        "the model",
    )
    clock: datetime = Field(
        datetime(2025, 1, 1),
        description="the moment a chat template's strftime_now tells, in training and measuring",
    )


class NightSize(Section):
    """How many rows a night takes, and how many of them it holds out."""

    heldout_fraction: float = Field(0.1, gt=0.0, lt=0.5, description="of rows, where none is given")
    max_rows: int | None = Field(
        None, ge=1, description="training rows kept, first by seed; null: all"
    )


class Replay(Section):
    """What a night trains on beside new rows, so that it forgets less; shares of all rows."""

    rows: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of rows that earlier nights trained on, from the ledger's reservoir",
    )
    general: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of old text, that nobody measures on"
    )
    written: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of rows that the original base wrote itself, in write_replay",
        json_schema_extra=NEUTRAL_DEFAULT,
    )

    @model_validator(mode="after")
    def _leaves_new_rows(self) -> "Replay":
        if self.rows + self.general + self.written >= 1.0:
            raise ValueError(
                f"rows={self.rows}, general={self.general} and written={self.written} leave no "
                "place for new rows; their sum must be below 1"
            )
        return self


class PrepareData(RowRules, NightSize):
    """One night's conversations, a held-out part, and the evaluation tasks made from it."""

    source: Annotated[Source, Field(discriminator="kind")]
    replay: Replay = Replay()
    max_evaluation_rows: Positive = Field(
        512,
        description="documents of a generated evaluation task; those that the gate looks at first "
        "are evaluate.first_documents",
    )
