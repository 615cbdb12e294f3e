"""No error of a configuration shows a value that may be a secret, and none keeps one in clear."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from requant.config import Config
from requant.config.loading import (
    apply_override,
    given_config,
    json_schema,
    load_config,
    parse_config,
)
from requant.config.operations import PostAction
from requant.errors import ConfigError
from tests.support.chain import MICRO

SECRET = "hunter2hunter2"
TOKEN = "hf_hunter2hunter2hunter2hunter2hun"
"""Of a form that gives it away wherever it stands."""
AT = f"https://me:{SECRET}@serve.example/x"
POST = {"kind": "post", "url": "https://serve.example/reload"}
RUN = {"kind": "command", "argv": ["./deploy.sh"]}

# What a person may write, and what the error says.
WRITTEN: list[tuple[dict[str, Any], str]] = [
    ({"tracking": {"uri": f"https://me:{SECRET}@mlflow"}}, "tracking.uri: holds a user or a pass"),
    ({"tracking": {"uri": f"postgresql://me:{SECRET}@db/mlflow"}}, "tracking.uri: holds a user, a"),
    (
        {"tracking": {"uri": f"postgresql://db/x?password={SECRET}"}},
        "tracking.uri: holds a user, a",
    ),
    ({"tracking": {"uri": f"https://mlflow?token={SECRET}"}}, "tracking.uri: holds a query"),
    ({"tracking": {"uri": f"https://mlflow/#{SECRET}"}}, "tracking.uri: holds a fragment"),
    ({"tracking": {"uri": f"sqlite:///x.db?key={SECRET}"}}, "tracking.uri: holds a user, a pass"),
    *(
        ({"tracking": {field: address}}, f"tracking.{field}: {said}.* give the bare address")
        for field, address, said in (
            ("uri", f"http://mlflow/{TOKEN}", "holds a token of Hugging Face"),
            ("uri", f"http://mlflow/hf%5F{TOKEN[3:]}", "holds a token of Hugging Face"),
            ("uri", f"sqlite:////data/{TOKEN}.db", "holds a token of Hugging Face"),
            ("uri", f"postgresql://db/{TOKEN}", "holds a token of Hugging Face"),
            ("uri", f"http://mlflow/x;token={SECRET}", "gives a value to a name that says token"),
            ("pages", f"http://mlflow/{TOKEN}", "holds a token of Hugging Face"),
            ("pages", f"http://mlflow/password={SECRET}/", "gives a value to a name that says pa"),
            ("pages", f"http://mlflow/{SECRET * 200}", "has 2814 characters, at most 2000"),
        )
    ),
    (
        {"deploy": {"action": {**POST, "url": f"https://hook.example/{TOKEN}"}}},
        "action.url: holds a token of Hugging Face; .* that is itself a secret .* url: env:NAME",
    ),
    (
        {"deploy": {"action": {**POST, "url": f"https://hook.example/x;token={SECRET}"}}},
        "action.url: gives a value to a name that says token; .* itself a secret .* url: env:NAME",
    ),
    (
        {"deploy": {"action": {**POST, "plain_http_host": TOKEN}}},
        "action.plain_http_host: holds a token of Hugging Face; give the host of url",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": ["./deploy.sh", SECRET * 1000]}}},
        "deploy.action.argv: item 2 of 2 has 14000 characters, at most 10000 .*; put it into a f",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": [SECRET] * 1001}}},
        "deploy.action.argv: has 1001 items, at most 1000 .*; put them into a f",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": ["a=" * 5000] * 11}}},
        "deploy.action.argv: has 110000 characters in all, at most 100000 .*; put them into a f",
    ),
    ({"tracking": {"uri": [SECRET]}}, "tracking.uri: got a list. Expected a string"),
    ({"tracking": {"uri": {"password": SECRET}}}, "tracking.uri: got a mapping. Expected a string"),
    ({"tracking": {"pages": f"http://me:{SECRET}@mlflow"}}, "tracking.pages: holds a user or a"),
    ({"tracking": {"pages": f"http://mlflow/?{SECRET}"}}, "tracking.pages: holds a query"),
    ({"tracking": {"password": SECRET}}, "tracking.password: unknown field; valid: experiment, "),
    (
        {"tracking": {f"uri https://me:{SECRET}@x": None}},
        r"tracking.\(a name of 31 characters\): u",
    ),
    ({"tracking": f"https://me:{SECRET}@mlflow"}, "tracking: got a string. Expected a mapping"),
    ({"deploy": SECRET}, "deploy: got a string. Expected a mapping of"),
    ({"deploy": {"token": SECRET}}, "deploy.token: unknown field; valid: action, smoke_prompt"),
    ({"deploy": {"action": SECRET}}, "deploy.action: got a string. Expected a mapp"),
    ({"deploy": {"action": {"url": SECRET}}}, "deploy.action: got a mapping. Expected a"),
    ({"deploy": {"action": {**POST, "token": SECRET}}}, "action.token: expected env:NAME, of the"),
    ({"deploy": {"action": {**POST, "token": [SECRET]}}}, "action.token: got a list. Expected a s"),
    ({"deploy": {"action": {**POST, "headers": {"X": SECRET}}}}, "action.headers: unknown field"),
    ({"deploy": {"action": {**POST, "argv": [SECRET]}}}, "action: argv: of kind command, and kind"),
    (
        {"deploy": {"action": {**POST, "url": SECRET}}},
        "action.url: is not http:// or https:// with",
    ),
    ({"deploy": {"action": {**POST, "url": f"env:{SECRET} x"}}}, "action.url: is not http:// or"),
    (
        {"deploy": {"action": {**POST, "url": f"https://me:{SECRET}@serve.example"}}},
        "deploy.action.url: holds a user or a password; give https://HOST/PATH, and a secret as to",
    ),
    (
        {"deploy": {"action": {**POST, "url": f"https://hook.example/?key={SECRET}"}}},
        r"action.url: holds a query \(\?...\); .* that is itself a secret .* url: env:NAME",
    ),
    (
        {"deploy": {"action": {**POST, "plain_http_host": [SECRET]}}},
        "action.plain_http_host: got a list. Expected a string",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": SECRET}}},
        "deploy.action.argv: got a string. Expected a list of strings, such as",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": [{SECRET: 1}]}}},
        r"action.argv.0: got a mapping. Expected a string",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": ["", SECRET]}}},
        "action.argv: expected a program first",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": ["./deploy.sh", "--token", SECRET]}}},
        r"deploy.action.argv: item 3 of 3 follows an option that says token, .* give it as deploy."
        r"action.secrets: \{NAME: env:NAME\}, or block:NAME",
    ),
    (
        {"deploy": {"action": {**RUN, "argv": ["x", f"https://me:{SECRET}@serve.example"]}}},
        "deploy.action.argv: item 2 of 2 holds an address with a password, and Prefect keeps",
    ),
    ({"deploy": {"action": {"kind": SECRET}}}, "action.kind: got a string. Expected one of copy, "),
    ({"name": TOKEN}, "name: holds a token of Hugging Face, and Prefect and MLflow keep this fie"),
    ({"evaluate": {"tasks": [TOKEN]}}, "evaluate.tasks: holds a token of Hugging Face"),
    ({"evaluate": {"tasks": {TOKEN: 1}}}, "evaluate.tasks: got a mapping. Expected a list of str"),
    ({"tracking": {"experiment": f"to {TOKEN}"}}, "tracking.experiment: holds a token"),
    ({"prepare_data": {"source": {"kind": "files", "train": [f"{TOKEN}.csv"]}}}, "holds a token"),
    ({"prepare_base": {"source": {"kind": "folder", "path": AT}}}, "path: holds an address with"),
    ({"prepare_base": {"source": {"kind": "hub", "repo": AT}}}, "repo: holds an address with a p"),
    ({"deploy": {"smoke_prompt": f"see {AT}"}}, "deploy.smoke_prompt: holds an address with a pas"),
    ({TOKEN: 1}, r"\(a name of 34 characters\): unknown field"),
    (
        {"deploy": {"action": {**RUN, "secrets": {"TOKEN": SECRET}}}},
        "deploy.action.secrets.TOKEN: expected env:NAME",
    ),
    (
        {"deploy": {"action": {**RUN, "secrets": {f"T={SECRET}": "env:T"}}}},
        "deploy.action.secrets: expected names of environment variables",
    ),
    ({"deploy": {"action": {**RUN, "secrets": SECRET}}}, "action.secrets: got a string. Expected"),
    ({"prepare_base": {"source": {"hf_token": SECRET}}}, "prepare_base.source: got a mapping. Ex"),
    ({"hf_token": SECRET}, "hf_token: unknown field; valid: "),
]


def document(**fields: Any) -> dict[str, Any]:
    return {**yaml.safe_load(MICRO), **fields}


def refused(error: BaseException) -> str:
    """All that anybody could print of an error, also one who prints what it came from."""
    said = "".join(traceback.format_exception(error))
    assert "hunter" not in said
    return str(error)


@pytest.mark.parametrize(("fields", "text"), WRITTEN)
def test_a_value_that_may_be_a_secret_is_not_repeated(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse_config(document(**fields), origin="t.yaml")
    refused(caught.value)
    with pytest.raises(ConfigError, match=text) as caught:
        given_config(document(**fields))
    refused(caught.value)


def test_pydantic_itself_shows_no_value() -> None:
    for fields in (
        {"tracking": {"uri": f"https://me:{SECRET}@mlflow", "password": SECRET}},
        {"deploy": {"action": {**POST, "token": SECRET}}},
        {"hf_token": SECRET},
    ):
        with pytest.raises(ValidationError) as caught:
            Config.model_validate(document(**fields))
        assert SECRET not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a: [\ntoken: '{SECRET}", r"line 2, column 23: found unexpected end of stream"),
        (f"token: *{SECRET}", r"line 1, column 8: an alias \(\*name\) repeats another part"),
        (f"token: !{SECRET} x", "column 8: could not determine a constructor for the tag '...'"),
        (f"token: &{SECRET} x\nurl: &{SECRET} y", "found duplicate anchor '...'; first occurrence"),
        (f"token: !{SECRET}!x y", "column 8: found undefined tag handle '...'"),
        (f"tracking: {{uri: https://me:{SECRET}@x, uri: }}}}", "line 1, column "),
        (f"{SECRET}", "holds str, expected a mapping of sections"),
    ],
)
def test_what_is_no_yaml_is_not_repeated(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    refused(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            f"deploy.action.token {SECRET}",
            r"--set \(a name of 34 characters\): expected section.fi",
        ),
        (
            f"deploy.action.token=[{SECRET}",
            "--set deploy.action.token: the value is not YAML: line",
        ),
        (
            f"tracking.uri.password={SECRET}",
            "tracking.uri.password: .* no field password inside a st",
        ),
        (f"tracking.uri=https://me:{SECRET}@x", "tracking.uri: holds a user or a password"),
        (f"deploy.action={SECRET}", "deploy.action: got a string. Expected a mapp"),
    ],
)
def test_what_is_set_is_not_repeated(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f"{MICRO}\ntracking: {{uri: 'http://mlflow/{SECRET}'}}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path, [override])
    refused(caught.value)


def test_an_override_that_works_keeps_its_value() -> None:
    assert apply_override({}, "tracking.uri=http://x") == {"tracking": {"uri": "http://x"}}


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"url": "https://serve.example:8443/a/b", "token": "env:T"}, None),
        ({"url": "http://127.0.0.1:9/x", "token": "env:T"}, None),
        ({"url": "http://127.8.9.1", "token": "env:T"}, None),
        ({"url": "http://[::1]:80/", "token": "env:T"}, None),
        ({"url": "http://localhost:80", "token": "block:t"}, None),
        ({"url": "env:HOOK"}, None),
        ({"url": "https://token:8080/v1/models/secret/token"}, None),
        ({"url": f"https://serve.example/{'a=' * 900}"}, None),
        ({"url": "http://serve.lan/x"}, "url: http:// to another machine; give https://, or plain"),
        ({"url": "http://serve.lan/x", "plain_http_host": "Serve.LAN"}, None),
        ({"url": "http://serve.lan/x", "plain_http_host": "other.lan"}, "to another machine"),
        (
            {"url": "http://serve.lan", "plain_http_host": "serve.lan", "token": "env:T"},
            "have the to",
        ),
        ({"url": "http://localhost.evil.example", "token": "env:T"}, "http:// with token"),
        ({"url": "http://127.0.0.1.evil.example"}, "to another machine"),
        ({"url": "http://0.0.0.0/"}, "to another machine"),
        ({"url": "http://2130706433/"}, "to another machine"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, "to another machine"),
        ({"url": "https://a\\@b"}, "holds a user"),
        ({"url": "http://127.0.0.1\\.evil.example"}, "is not http:// or https://"),
        ({"url": "https://serve.example/a b"}, "is not http:// or https://"),
        ({"url": "https://serve.example/a\nHost: x"}, "is not http:// or https://"),
        ({"url": "https://serve.example:99999"}, "is not http:// or https://"),
        ({"url": "https:///x"}, "is not http:// or https://"),
        ({"url": "ftp://serve.example"}, "is not http:// or https://"),
    ],
)
def test_where_a_release_may_be_posted(fields: dict[str, Any], fault: str | None) -> None:
    given = document(deploy={"action": {"kind": "post", **fields}})
    if fault is None:
        assert isinstance(parse_config(given, "t.yaml").deploy.action, PostAction)
        return
    with pytest.raises(ConfigError, match=fault):
        parse_config(given, "t.yaml")


def test_the_server_of_prefect_refuses_a_token_before_it_keeps_it() -> None:
    """Argument by argument: what follows an option only the worker knows."""
    from prefect.utilities.schema_tools import validate

    schema = json_schema()
    for argv, refused in ((["./deploy.sh", "$TOKEN"], False), (["x", f"--token={TOKEN}"], True)):
        given = document(deploy={"action": {"kind": "command", "argv": argv}})
        assert bool(validate(given, schema)) is refused
    for address, refused in (("http://h/x", False), (f"http://h/{TOKEN}", True)):
        for given in (
            document(deploy={"action": {"kind": "post", "url": address}}),
            document(tracking={"uri": address}),
            document(tracking={"pages": address}),
        ):
            assert bool(validate(given, schema)) is refused
    assert not validate(document(tracking={"uri": None, "pages": None}), schema)


def test_mlflow_gets_no_field_that_may_hold_a_secret() -> None:
    tracking = {"uri": "http://mlflow", "experiment": "e"}
    config = Config.model_validate(document(tracking=tracking, deploy={"action": RUN}))
    fields = config.open_fields()
    assert fields["tracking"] == {"experiment": "e"}
    assert fields["deploy"]["action"] == {"kind": "command", "seconds": 600.0}
    assert fields["train_adapter"] == config.model_dump(mode="json")["train_adapter"]
