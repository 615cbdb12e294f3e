"""The rows of a query are read as they come; what is wrong with database or query is told apart."""

import sqlite3
from pathlib import Path

import pytest

from requant.collecting.read import require_rows
from requant.collecting.sql import FETCHED
from requant.errors import ConfigError, TransientError
from tests.support.reads import PAIR, outcome, query, reads

SECRET = "hunter2hunter2"
MESSAGES = (
    '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4", "weight": 1}]'
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("CREATE TABLE rows (n INTEGER, messages TEXT, text TEXT, at BLOB)")
        database.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?)",
            [
                (1, MESSAGES, None, b"\xff"),
                (2, None, "Plain: 10:30, 5 % of it.", None),
                (3, "[{", None, None),
                (4, None, " ", None),
                (6, '{"role": "user"}', None, None),
                (7, None, "last", None),
            ],
        )
        database.execute("INSERT INTO rows VALUES (5, NULL, CAST(x'61FF' AS TEXT), NULL)")
    database.close()
    return f"sqlite:///{tmp_path}/rows.db"


ALL = "SELECT * FROM rows WHERE text IS NULL OR text LIKE '%' AND text <> ':30' ORDER BY n;"


def test_good_and_bad_rows_are_read_in_the_order_of_the_query(url: str, tmp_path: Path) -> None:
    found = reads(query(url, ALL), tmp_path)
    assert [read.place for read in found] == [f"row {number}" for number in range(1, 8)]
    assert [read.row for read in found if read.row] == [
        PAIR,
        {"text": "Plain: 10:30, 5 % of it."},
        {"text": "last"},
    ]
    assert found[0].source == "tickets"
    assert found[0].ignored == ("at", "n")
    assert found[1].raw == (b'{"at":null,"messages":null,"n":2,"text":"Plain: 10:30, 5 % of it."}')
    assert b'"at":"ff"' in found[0].raw
    said = {place: reason for place, reason in outcome(found) if reason}
    assert list(said) == ["row 3", "row 4", "row 5", "row 6"]
    assert said["row 3"].startswith("messages: is not JSON (Expecting property name")
    assert said["row 4"] == "text is ' '; expected non-empty text"
    assert said["row 5"].startswith("text: holds '\\udcff' at character 1, half of a surrogate")
    assert said["row 6"].startswith("messages is {'role': 'user'}; expected [")


def test_named_columns_are_taken_as_named(url: str, tmp_path: Path) -> None:
    named = query(url, "SELECT messages AS dialog FROM rows WHERE n = 1")
    (read,) = reads(named, tmp_path, messages="dialog")
    assert read.row == PAIR
    pair = query(url, "SELECT 'a' AS q, 'b' AS a")
    (read,) = reads(pair, tmp_path, messages=None, prompt="q", response="a")
    assert read.format == "q and a"


def test_nothing_is_changed(url: str, tmp_path: Path) -> None:
    before = (tmp_path / "rows.db").read_bytes()
    reads(query(url, ALL), tmp_path)
    assert (tmp_path / "rows.db").read_bytes() == before


@pytest.mark.parametrize(
    ("address", "text", "said"),
    [
        ("{url}", "SELECT * FROM nights", r"\.query: no such table: nights; correct it"),
        ("{url}", "SELECT x FROM rows", r"\.query: no such column: x; correct it"),
        ("{url}", "SELECT FROM", r"\.query: near \"FROM\": syntax error; correct it"),
        ("{url}", "SELECT n, n FROM rows", r"\.query: gives two columns 'n'; name one otherwise"),
        (
            "sqlite:///absent.db",
            "SELECT 1",
            r"\.url: there is no file 'absent\.db'; give a database",
        ),
        (
            "env:ABSENT_URL",
            "SELECT 1",
            r"\.url: the environment has no ABSENT_URL, or an empty one",
        ),
        ("env:ROWS_URL", "SELECT 1", r"\.url: is no address of a database; expected dialect\+"),
        ("duck://x", "SELECT 1", r"\.url: Can't load plugin: .*duck; install the package of the"),
        ("oracle://x/y", "SELECT 1", r"\.url: oracle needs a package .*cx_Oracle.*another driver"),
    ],
)
def test_what_cannot_work_is_refused_by_field(
    address: str, text: str, said: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROWS_URL", SECRET)
    source = query(address.format(url=url), text)
    with pytest.raises(ConfigError, match=rf"^collect_rows\.sources\.tickets{said}") as refused:
        reads(source, tmp_path)
    assert SECRET not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.db"]
    if ".url" in said[:6]:
        with pytest.raises(ConfigError, match=said):
            require_rows(source)
    else:
        # Only the database knows.
        require_rows(source)


def test_an_address_from_the_environment_is_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_URL", url)
    assert reads(query("env:ROWS_URL", ALL), tmp_path) == reads(query(url, ALL), tmp_path)


def test_a_busy_database_is_tried_again(url: str, tmp_path: Path) -> None:
    owner = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    owner.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TransientError, match=r"tickets: .* \(database is locked\)"):
            reads(query(f"{url}?timeout=0.01", ALL), tmp_path)
    finally:
        owner.close()


def test_a_row_that_ends_the_query_is_said_after_those_before_it(url: str, tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE all_n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM all_n LIMIT 3000)"
    overflow = "abs(CASE n WHEN 2500 THEN -9223372036854775807 - 1 ELSE n END)"
    found = reads(query(url, f"{numbers} SELECT {overflow} || '' AS text FROM all_n"), tmp_path)
    *before, bad = found
    # But for those that were fetched together with it.
    assert 2500 - FETCHED <= len(before) < 2500
    assert [read.row for read in before] == [{"text": f"{n + 1}"} for n in range(len(before))]
    said = "from here on no row can be read (integer overflow); correct the row, or the query"
    assert (bad.place, bad.reason) == (f"row {len(before) + 1}", said)
