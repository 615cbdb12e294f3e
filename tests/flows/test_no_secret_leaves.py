"""A night that ends well, and more than thirty that fail, with planted secrets; then both
databases, all logs, reports and pages are read, and what went to the terminal.
"""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

from flows.deploy_model import deploy_model
from flows.incremental_training import incremental_training
from requant.config import Config
from requant.config.loading import load_config
from tests.support.chain import MICRO
from tests.support.commands import requant
from tests.support.planted import ENCODINGS, encoded, files, holding, leaks, settle
from tests.support.servers import Answer, says, serving
from tests.support.word_stage import take

TOKEN = "pl4nted+tok3n/of~the=deployment"
KEY = "-----BEGIN PLANTED KEY-----\npl4ntedMIIEvQIBADANBgkqhki\nG9w0pl4ntedBAQEFAASCB\n"
PATH, QUERY = "pl4nted-path-of-the-hook", "pl4nted-key-of-the-hook"
MLFLOW = "pl4nted-password-of-mlflow"
HUB = "hf_pl4ntedTokenOfTheHub"
LITERAL = "pl4nted-by-mistake"
SECRETS = {
    "token": TOKEN,
    **{f"key, line {number}": line for number, line in enumerate(KEY.splitlines())},
    "path": PATH,
    "query": QUERY,
    "mlflow": MLFLOW,
    "hub": HUB,
    "literal": LITERAL,
}
MARKER = "marker-beside-the-secret"
ECHO = (
    "import base64, json, os, sys, time; from urllib.parse import quote; "
    f"token = os.environ['T']; print('{MARKER}', {{said}}); sys.stdout.flush(); {{then}}"
)


def program(said: str, then: str = "sys.exit(3)", **fields: Any) -> dict[str, Any]:
    argv = [sys.executable, "-c", ECHO.format(said=said, then=then)]
    return {"kind": "command", "argv": argv, "secrets": {"T": "env:T"}, **fields}


OF_BLOCK = {"T": "block:planted-key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose night was done, promoted and deployed by a program that says its secret."""
    folder = tmp_path_factory.mktemp("project")
    action = program(", ".join(ENCODINGS.values()), then="pass")
    document = yaml.safe_load(MICRO) | {"state": str(folder / "state")}
    document["deploy"] = {"action": action}
    (folder / "micro.yaml").write_text(yaml.safe_dump(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T", TOKEN)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", MLFLOW)
        patch.setenv("HF_TOKEN", HUB)
        Secret(value=KEY).save("planted-key", overwrite=True)
        said = requant("run", folder / "micro.yaml")
        said += requant("promote", folder / "micro.yaml", "--reason", "it is time")
        said += requant("deploy", folder / "micro.yaml")
        (folder / "said.txt").write_text(said)
        # What it takes to load a model is of no interest to those that follow.
        patch.setattr("tasks.deploy_model.check_release", lambda *words: "an answer")
        patch.setattr("tasks.deploy_model.DELAY_SECONDS", [])
        yield folder


@pytest.fixture
def places(folder: Path, tmp_path: Path) -> list[Path]:
    """Where a secret could lie: the state folder with MLflow, Prefect's database, the terminal."""
    database = Path(PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2])
    return [folder / "state", database.parent, tmp_path]


def with_action(config: Config, action: dict[str, Any]) -> Config:
    return Config.model_validate({**config.model_dump(mode="json"), "deploy": {"action": action}})


def deployed(config: Config, action: dict[str, Any]) -> str:
    """Deploy with another action; return what Prefect says of the run that failed."""
    state = deploy_model(with_action(config, action), return_state=True)
    assert state.is_failed(), state
    return str(state.message)


def test_what_leaked_would_be_found(tmp_path: Path) -> None:
    for name in ENCODINGS:
        (tmp_path / "leaked").write_text(json.dumps({"said": f"it is {encoded(TOKEN, name)}."}))
        assert [leak for leak in leaks([tmp_path], SECRETS) if ": token as " in leak], name


def test_a_whole_night_says_no_secret(folder: Path, places: list[Path]) -> None:
    settle(places)
    # The search reads what the program said, in Prefect's log and in the record of the deployment.
    assert {"prefect-test.db", "micro.json"} <= holding(places, MARKER)
    assert any(path.name == "report.html" for path in files(places))
    assert leaks([*places, folder], SECRETS) == []


PROGRAMS = {
    **{f"says it as {name}": program(said) for name, said in ENCODINGS.items()},
    "says it at its time limit": program("token", "time.sleep(30)", seconds=1.5),
    "says it over the edge of what is shown": program("(token + chr(10)) * 400"),
    "says it over the edge of what is kept": program("(token + ' ') * 20000"),
    "says one line of a key": program("token.splitlines()[1]", secrets=OF_BLOCK),
    "says a key": program("repr(token)", secrets=OF_BLOCK),
    "says what it inherits": program("os.environ.get('MLFLOW_TRACKING_PASSWORD', token)"),
    "dies of it": program("''", "raise RuntimeError(token)"),
}


def echoed(status: int, name: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler, body: bytes) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        text = f"{MARKER} {encoded(token, name)} {request.path}"
        says(status, text.encode(), Location=f"/login{request.path}?back={token}")(request, body)

    return answer


SERVERS: dict[str, tuple[Answer, dict[str, Any]]] = {
    **{f"refuses it as {name}": (echoed(401, name), {}) for name in ENCODINGS},
    "is ill": (echoed(500, "json"), {}),
    "sends on": (echoed(302, "plain"), {}),
    "says its own address": (echoed(404, "url"), {"url": "env:HOOK"}),
    "sends on from a secret address": (echoed(307, "plain"), {"url": "env:HOOK", "token": None}),
}


def test_thirty_nights_that_fail_say_no_secret(
    folder: Path,
    places: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = load_config(folder / "micro.yaml")
    failed: list[str] = []
    for action in PROGRAMS.values():
        failed.append(deployed(config, action))
        assert "deploy.action.argv" in failed[-1]
    for answer, fields in SERVERS.values():
        with serving(answer) as address:
            monkeypatch.setenv("HOOK", f"{address}/{PATH}?key={QUERY}")
            action = {"kind": "post", "url": f"{address}/hook", "token": "env:T", **fields}
            failed.append(deployed(config, action))
            assert "deploy.action.url" in failed[-1]
    # The secrets themselves cannot be used.
    hook = {"kind": "post", "url": "env:HOOK", "token": "env:T"}
    for name, value in {
        "HOOK": f"http://hook.example/{PATH}?key={QUERY}",
        "T": f"{TOKEN}\nX-Other: header",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv("HOOK", f"http://127.0.0.1:9/{PATH}?key={QUERY}")
            patch.setenv(name, value)
            failed.append(deployed(config, hook))
    failed.append(deployed(config, hook))
    assert "env:HOOK does not answer" in failed[-1]
    # The look before a night.
    for name, value in {"T": TOKEN[:5], "HOOK": f"https://me:{QUERY}@hook.example/{PATH}"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            state = incremental_training(with_action(config, hook), return_state=True)
            assert state.is_failed()
            failed.append(str(state.message))
            assert "preflight: the night cannot end well" in failed[-1]
    # Stages whose libraries say what they were given.
    for kind, launcher in [("io", "inline"), ("cause", "inline"), ("printed", "process")]:
        state = take(str(folder / "state"), f"leak-{kind}", launcher, return_state=True)
        assert state.is_failed()
        failed.append(str(state.message))
    assert "marker-in-the-error ***" in failed[-1]
    # Configurations with a secret in clear, refused before anything is kept.
    for override in (
        f"tracking.uri=https://me:{LITERAL}@mlflow",
        f"tracking.password={LITERAL}",
        f"deploy.action={{kind: post, url: 'https://x/?key={LITERAL}'}}",
        f"deploy.action={{kind: post, url: 'https://x', token: {LITERAL}}}",
        f"deploy.action.argv={LITERAL}",
    ):
        failed.append(requant("run", folder / "micro.yaml", "--set", override, fails=2))
    assert len(failed) >= 36

    (tmp_path / "terminal.txt").write_text("\n".join([*failed, caplog.text]))
    settle(places)
    assert {"prefect-test.db", "terminal.txt"} <= holding(places, MARKER)
    # MLflow, the report and the log of a stage's own process tell of the stages that failed.
    said = holding(places, "marker-in-the-error")
    assert {"mlflow.db", "report.html", "summary.json", "prefect-test.db"} <= said
    assert "evaluate.1.log" in holding(places, "marker-in-the-log")
    assert leaks([*places, folder], SECRETS) == []


def test_a_parameter_that_is_refused_is_not_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect keeps what a run was given; what it says of it goes further."""
    given = load_config(folder / "micro.yaml").model_dump(mode="json")
    for tracking in ({"uri": f"https://me:{LITERAL}@mlflow"}, {"password": LITERAL}):
        for flow in (deploy_model, incremental_training):
            state = flow({**given, "tracking": tracking}, return_state=True)  # type: ignore[arg-type]
            assert state.is_failed()
            assert "the parameter config: the configuration cannot work" in str(state.message)
            assert LITERAL not in str(state.message)
    (tmp_path / "terminal.txt").write_text(caplog.text)
    assert "the configuration cannot work" in caplog.text
    assert leaks([tmp_path], SECRETS) == []
