"""A source is refused where it cannot work, and keeps no secret in clear."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from requant.config.loading import parse_config
from requant.config.section import MAY_HOLD_SECRET, NOT_IN_KEY, Section
from requant.config.sources import RowSource
from requant.errors import ConfigError
from tests.support.chain import MICRO

SECRET = "hunter2hunter2"
FILES = {"kind": "files"}
SQL = {"kind": "sql", "url": "sqlite:///rows.db", "query": "SELECT text FROM rows"}

TAKEN: list[dict[str, Any]] = [
    {
        **FILES,
        "paths": ["week1.jsonl", "old/", "~/new/**/*.parquet", "a::b.jsonl", "week[1].jsonl"],
    },
    {**FILES, "paths": ["s3://bucket/a/**/*.jsonl.gz", "memory://x", "https://host:80/a.jsonl"]},
    {"kind": "hub", "repo": "owner/rows"},
    {**SQL, "url": "env:ROWS_URL"},
    {**SQL, "url": "postgresql+psycopg2://me@db.example:5432/rows?sslmode=require"},
    {**SQL, "query": "-- new ones; all\nWITH a AS (SELECT ';' AS text) SELECT text FROM a;"},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**FILES, "paths": []}, "at least 1 item"),
    ({**FILES, "paths": [""]}, "expected a path of parts with 255 bytes at most"),
    ({**FILES, "paths": ["a\0.jsonl"]}, "without NUL"),
    ({**FILES, "paths": ["a/b**/c"]}, r"\*\* stands for folders: expected it alone"),
    ({**FILES, "paths": [f"https://me:{SECRET}@host/a.jsonl"]}, "holds a user or a password; give"),
    ({**FILES, "paths": [f"https://host/a.jsonl?X-Amz-Signature={SECRET}"]}, r"holds a query"),
    ({**FILES, "paths": [f"s3://key:{SECRET}@bucket/a"]}, "holds an address with a password"),
    ({**FILES, "paths": [f"s3://bucket/token={SECRET}/a"]}, "name that says token; .*AWS_ACCESS"),
    ({**FILES, "paths": ["a"], "storage_options": {}}, "Extra inputs"),
    ({**FILES, "paths": ["a"], "name": "Week 1"}, "should match pattern"),
    ({"kind": "hub", "repo": "rows"}, "expected owner/name"),
    ({**SQL, "url": f"postgresql://me:{SECRET}@db/rows"}, "holds a password; .* as env:NAME"),
    ({**SQL, "url": f"postgresql://db/rows?password={SECRET}"}, "name that says password; give it"),
    ({**SQL, "url": f"mssql://?odbc_connect=PWD%3D{SECRET}"}, "name that says pwd; give it"),
    ({**SQL, "url": "rows.db"}, "is no address such as postgresql"),
    ({**SQL, "url": "block:rows"}, "is no address such as .*env:NAME"),
    ({**SQL, "query": "DELETE FROM rows"}, "expected one statement that begins with SELECT"),
    ({**SQL, "query": "SELECT 1; DROP TABLE rows"}, "expected one statement"),
    ({**SQL, "query": "-- SELECT\nDROP TABLE rows"}, "expected one statement"),
    ({"kind": "ftp"}, "does not match any of the expected tags: 'files', 'hub', 'sql'"),
]


class Several(Section):
    sources: tuple[RowSource, ...]


@pytest.mark.parametrize("given", TAKEN, ids=str)
def test_what_can_work_is_taken(given: dict[str, Any]) -> None:
    (taken,) = Several.model_validate({"sources": [{"name": "week", **given}]}).sources
    assert taken.model_dump(mode="json", exclude_unset=True) == {"name": "week", **given}


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda each: str(each)[:60])
def test_what_cannot_is_refused_without_its_secret(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        Several.model_validate({"sources": [{"name": "week", **given}]})
    assert SECRET not in str(refused.value)


def test_neither_key_nor_pages_hold_where_rows_lie() -> None:
    given = [
        {"name": "week", "kind": "files", "paths": ["a.jsonl"]},
        {"name": "tickets", **SQL},
        {"name": "hub", "kind": "hub", "repo": "owner/rows"},
    ]
    several = Several.model_validate({"sources": given})
    week, tickets, hub = several.key_fields()["sources"]
    assert (week, tickets) == (
        {"kind": "files", "name": "week"},
        {"kind": "sql", "name": "tickets"},
    )
    assert hub == {
        "kind": "hub",
        "name": "hub",
        "repo": "owner/rows",
        "subset": None,
        "split": "train",
    }
    assert "url" not in several.open_fields()["sources"][1]
    assert NOT_IN_KEY != MAY_HOLD_SECRET


def test_an_unknown_field_of_an_item_of_a_list_is_answered_with_the_known_ones() -> None:
    document = yaml.safe_load(MICRO)
    document["requantize_gptq"] = {
        **document.get("requantize_gptq", {}),
        "candidates": [{"groupsize": 32}],
    }
    with pytest.raises(
        ConfigError, match=r"candidates\.0\.groupsize: unknown field; did you mean 'group_size'"
    ):
        parse_config(document, "night.yaml")
