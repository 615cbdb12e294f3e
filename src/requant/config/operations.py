"""The sections that say where a night runs and what becomes of its model. None is in any key."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from requant.config.addresses import PLAIN_ADDRESS, clear_fault, host_of, http_fault, sent_openly
from requant.config.given_names import Name
from requant.config.plain_secrets import TOKEN_PATTERN, text_fault
from requant.config.secret_arguments import MAX_ITEMS, MAX_LETTERS, argument_fault, length_fault
from requant.config.section import MAY_HOLD_SECRET, LocalPath, Positive, Relative, Section


class Promote(Section):
    """Register the evaluated requantized model; let it serve."""

    enabled: bool = Field(True, description="false registers nothing")
    auto: bool = Field(
        False,
        description="true lets it serve as soon as evaluate.gate says so; false waits for "
        "`requant promote`",
    )

    @model_validator(mode="before")
    @classmethod
    def _guard_has_moved(cls, value: Any) -> Any:
        if isinstance(value, dict) and "guard" in value:
            raise ValueError(
                "guard: has moved: leave it out, and all generated tasks guard; tasks of your own "
                "choice go into evaluate.gate.guard (docs/gate.md)"
            )
        return value


NO_TOKEN: dict[str, Any] = {"not": {"type": "string", "pattern": TOKEN_PATTERN}}
REFERENCE = r"^(env|block):[A-Za-z0-9_-]+$"


def is_reference(value: str) -> bool:
    """Tell whether a value names a secret: `env:NAME`, or `block:NAME`, a Prefect Secret block."""
    return re.fullmatch(REFERENCE[1:-1], value) is not None


def _checked_reference(value: str) -> str:
    if not is_reference(value) or text_fault(value):
        raise ValueError(
            "expected env:NAME, of the environment where the worker runs, or block:NAME, of a "
            "Prefect Secret block; the secret itself stands in no configuration"
        )
    return value


SecretReference = Annotated[
    str, AfterValidator(_checked_reference), Field(json_schema_extra={"pattern": REFERENCE})
]
"""`env:NAME` of the environment, or `block:NAME`, a Prefect Secret block."""


class CopyAction(Section):
    """Copy the model to a folder, where `current` points at the one that serves."""

    kind: Literal["copy"]
    folder: LocalPath = Field(description="gets a folder per digest and the link `current`")


class CommandAction(Section):
    """Run a program; it finds REQUANT_FOLDER, _MODEL, _VERSION and _DIGEST in its environment.

    That is the worker's, without the secrets of MLflow, Prefect and the hub. What it leaves running
    stays if it ends well, and ends with it if it fails or takes too long.
    """

    kind: Literal["command"]
    argv: tuple[str, ...] = Field(
        min_length=1,
        description="program and arguments; no shell, no secret: `secrets` names those",
        json_schema_extra=MAY_HOLD_SECRET
        | {"maxItems": MAX_ITEMS}
        | {"items": {"type": "string", "maxLength": MAX_LETTERS} | NO_TOKEN},
    )
    secrets: dict[str, SecretReference] = Field(
        {}, description="environment variable -> secret", json_schema_extra=MAY_HOLD_SECRET
    )
    seconds: Relative = Field(600.0, description="it may take, with all it starts")

    @field_validator("argv")
    @classmethod
    def _has_a_program(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        long = length_fault(value)
        if long is not None:
            raise ValueError(long)
        if not value[0].strip() or any("\0" in word for word in value):
            raise ValueError("expected a program first, and no NUL character")
        fault = argument_fault(value)
        if fault is not None:
            raise ValueError(
                f"{fault}, and Prefect keeps every parameter of a run in clear; give it as "
                "deploy.action.secrets: {NAME: env:NAME}, or block:NAME, which the program finds "
                "in its environment. A reference such as $NAME or env:NAME may stand here"
            )
        return value

    @field_validator("secrets")
    @classmethod
    def _names_variables(cls, value: dict[str, str]) -> dict[str, str]:
        if any(text_fault(x) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", x) for x in value):
            raise ValueError(
                "expected names of environment variables: letters, digits and _, no digit first"
            )
        return value


def no_program(argv: Sequence[str]) -> str:
    """Say that the first word of a command is no program, without it: it may be a whole line."""
    words = len(argv[0].split())
    size = f"{len(argv[0])} characters" + (f", {words} words" if words > 1 else "")
    return (
        f"its first item ({size}) is no program here (it is not shown: it may hold a secret); "
        "give a program that exists, and each argument as an item of its own"
    )


class PostAction(Section):
    """Send model, version, digest, uri and scores as JSON to a server; redirects are errors."""

    kind: Literal["post"]
    url: str = Field(
        description="https; http to this machine only; env:NAME or block:NAME where its path or "
        "query is a secret",
        json_schema_extra=MAY_HOLD_SECRET
        | {"pattern": r"^(https?://[^\s@?#\\]+|(env|block):[A-Za-z0-9_-]+)$"}
        | NO_TOKEN,
    )
    plain_http_host: str | None = Field(
        None,
        description="host that url may name with http://, where who listens may read what is sent",
        json_schema_extra=MAY_HOLD_SECRET | NO_TOKEN,
    )
    token: SecretReference | None = Field(
        None,
        description="sent as a bearer token, over https or to this machine",
        json_schema_extra=MAY_HOLD_SECRET,
    )
    seconds: Relative = Field(30.0, description="it may take")

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        fault = (None if is_reference(value) else http_fault(value)) or clear_fault(value)
        if fault is not None:
            raise ValueError(
                f"{fault}; give https://HOST/PATH, and a secret as token: env:NAME. An address "
                "that is itself a secret goes into the environment or a Secret block: url: env:NAME"
            )
        return value

    @field_validator("plain_http_host")
    @classmethod
    def _host_is_no_secret(cls, value: str | None) -> str | None:
        if value is not None and (fault := clear_fault(value)):
            raise ValueError(f"{fault}; give the host of url")
        return value

    @model_validator(mode="after")
    def _sends_nothing_openly(self) -> "PostAction":
        if is_reference(self.url) or not sent_openly(self.url):
            return self
        host = host_of(self.url)
        if self.token is not None:
            raise ValueError(
                "url: http:// with token: whoever listens on the way would have the token; give "
                "https://, or send no token"
            )
        if self.plain_http_host is None or self.plain_http_host.lower() != host:
            raise ValueError(
                "url: http:// to another machine; give https://, or plain_http_host: the host of "
                "url, if everybody on the way may read and change what is sent"
            )
        return self


class Deploy(Section):
    """What deploy_model does with a promoted model."""

    smoke_prompt: str = Field(
        "Hello.", min_length=1, max_length=10_000, description="what the model must answer"
    )
    smoke_tokens: Positive = Field(16, description="of the answer, greedily")
    action: (
        Annotated[CopyAction | CommandAction | PostAction, Field(discriminator="kind")] | None
    ) = Field(None, description="null: verify and answer only")


class Runtime(Section):
    """Where stages run and how often they are tried. Not in any key."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a GPU if there is one"
    )
    retries: int = Field(
        3, ge=0, le=20, description="attempts after the first, transient errors only"
    )
    retry_seconds: Relative = Field(10.0, description="first delay; it doubles, with jitter")
    launcher: Literal["inline", "process", "accelerate"] = Field(
        "inline",
        description="process: what kills a stage does not kill the night; accelerate: several ranks"
        " train",
    )
    ranks: Positive = Field(1, description="training processes, accelerate only")
    stage_minutes: float | None = Field(
        None, gt=0.0, description="wall time of one stage, not with inline; null: no limit"
    )
    max_late_minutes: float | None = Field(
        180.0,
        gt=0.0,
        description="a scheduled night that starts later is skipped; null: never",
    )

    @model_validator(mode="after")
    def _launcher_fits(self) -> "Runtime":
        if self.ranks > 1 and self.launcher != "accelerate":
            raise ValueError(
                f"ranks={self.ranks} with launcher={self.launcher!r}: only accelerate starts ranks"
            )
        if self.stage_minutes is not None and self.launcher == "inline":
            raise ValueError(
                f"stage_minutes={self.stage_minutes:g} with launcher='inline': only a stage in its "
                "own process can be stopped; set launcher=process"
            )
        return self


class Tracking(Section):
    """Where MLflow keeps its records."""

    uri: str | None = Field(
        None,
        description="http(s)://, sqlite:///; null: sqlite in the state folder",
        json_schema_extra=MAY_HOLD_SECRET | {"pattern": r"^([^@?#]*|sqlite:///[^?]*)$"} | NO_TOKEN,
    )
    pages: str | None = Field(
        None,
        description="address of a server that shows what a database in uri holds, for links",
        json_schema_extra=MAY_HOLD_SECRET | {"pattern": PLAIN_ADDRESS} | NO_TOKEN,
    )
    experiment: Name = Field("requant", min_length=1, description="MLflow experiment name")

    @field_validator("uri")
    @classmethod
    def _uri_holds_no_secret(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if value.startswith(("http://", "https://")):
            fault = http_fault(value)
        elif value.startswith("sqlite:///") and "?" not in value:
            fault = None
        else:
            # Which kinds there are the one who opens it says; any may hold a password.
            fault = "holds a user, a password or a query" if re.search("[@?#]", value) else None
        fault = fault or clear_fault(value)
        if fault is not None:
            raise ValueError(
                f"{fault}, and Prefect keeps every parameter of a run; give the bare address, and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, where the worker runs"
            )
        return value

    @field_validator("pages")
    @classmethod
    def _pages_hold_no_secret(cls, value: str | None) -> str | None:
        if value is not None and (fault := http_fault(value) or clear_fault(value)):
            raise ValueError(
                f"{fault}; it is put into pages that others read: give the bare address"
            )
        return value
