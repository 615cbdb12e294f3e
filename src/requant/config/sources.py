"""Where the rows of a night come from: files, a dataset on the hub, the rows of a SQL query."""

import re
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, Field, field_validator

from requant.config.addresses import clear_fault, http_fault
from requant.config.given_names import Name, Repository, Revision
from requant.config.plain_secrets import ADDRESS, user_of
from requant.config.secret_arguments import assigned_fault
from requant.config.section import MAY_HOLD_SECRET, NOT_IN_KEY, Section

SourceName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100, description="in figures and lists")
]
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""How what is not local begins; `a::b.parquet` is the name of a file."""
ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_NOT_CODE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/", re.DOTALL)
"""Texts, names and comments of SQL."""


def _checked_path(path: str) -> str:
    if not path or "\0" in path or any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError("expected a path of parts with 255 bytes at most, without NUL")
    if re.search(r"[^/]\*\*|\*\*[^/]", path):
        raise ValueError("** stands for folders: expected it alone between slashes, as in a/**/b")
    if not SCHEME.match(path):
        return path
    fault = http_fault(path) if path.startswith(("http://", "https://")) else None
    if fault := fault or clear_fault(path):
        raise ValueError(
            f"{fault}; give the bare address, and what opens it where the worker runs: the "
            "variables of its protocol (AWS_ACCESS_KEY_ID, ...), ~/.netrc for http"
        )
    return path


class FileRows(Section):
    """Files, folders and globs, on this machine or behind any address that fsspec knows."""

    kind: Literal["files"]
    name: SourceName
    paths: tuple[Annotated[str, AfterValidator(_checked_path)], ...] = Field(
        min_length=1,
        description="each a file, a folder (with all below it) or a glob (** for folders), local "
        "or s3://, http://, ...; read are .jsonl, .jsonl.gz, .jsonl.zst and .parquet, but no name "
        "that begins with a dot. Credentials and endpoints come from the environment of the "
        "protocol (AWS_ACCESS_KEY_ID, FSSPEC_S3_ENDPOINT_URL), for http from ~/.netrc",
        json_schema_extra=NOT_IN_KEY,
    )


class HubRows(Section):
    """A split of a dataset on the Hugging Face hub; what its revision resolves to is read."""

    kind: Literal["hub"]
    name: SourceName
    repo: Repository = Field(description="owner/name")
    revision: Revision = Field(
        "main", description="branch, tag or 40-hex commit", json_schema_extra=NOT_IN_KEY
    )
    subset: Name | None = Field(None, description="configuration name; null for the only one")
    split: Name = Field("train", description="split name")


class SqlRows(Section):
    """The rows of a query, of any database that SQLAlchemy has a driver for."""

    kind: Literal["sql"]
    name: SourceName
    url: str = Field(
        description="dialect+driver://user@host/database without a password (drivers read "
        "PGPASSWORD, ~/.pgpass and the like), or env:NAME, a variable with the whole address where "
        "the worker runs",
        json_schema_extra=MAY_HOLD_SECRET | NOT_IN_KEY,
    )
    query: str = Field(
        max_length=10_000,
        description="one SELECT, its columns those of a row; a conversation may be JSON in a text. "
        "A row is known again by its content, in whatever order rows come",
        json_schema_extra=NOT_IN_KEY,
    )

    @property
    def variable(self) -> str:
        """Name of the environment variable that holds the address; empty where `url` does."""
        found = re.fullmatch(ENVIRONMENT, self.url)
        return found[1] if found else ""

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        if re.fullmatch(ENVIRONMENT, value):
            return value
        match = ADDRESS.match(value)
        user = user_of(match[1], match[2]) if match else None
        fault: str | None = "is no address such as postgresql+psycopg2://user@host/database"
        if match:
            query = unquote(value.partition("?")[2])
            fault = "holds a password" if ":" in (user or "") else clear_fault(value)
            fault = fault or assigned_fault(query)
        if fault is not None:
            raise ValueError(
                f"{fault}; give it without a password, or the whole of it as env:NAME, a variable "
                "of the environment where the worker runs"
            )
        return value

    @field_validator("query")
    @classmethod
    def _selects(cls, value: str) -> str:
        code = _NOT_CODE.sub(" ", value).strip().removesuffix(";")
        if not re.match(r"(select|with)\b", code, re.IGNORECASE) or ";" in code:
            raise ValueError("expected one statement that begins with SELECT or WITH")
        return value


RowSource = Annotated[FileRows | HubRows | SqlRows, Field(discriminator="kind")]


def field_of(source: FileRows | HubRows | SqlRows) -> str:
    """Return how errors name a source."""
    return f"collect_rows.sources.{source.name}"
