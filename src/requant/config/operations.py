"""The sections that say where a night runs and what becomes of its model. None is in any key."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from requant.config.section import LocalPath, Positive, Relative, Section


class Promote(Section):
    """Register the evaluated requantized model; let it serve."""

    enabled: bool = Field(True, description="false registers nothing")
    auto: bool = Field(
        False, description="true lets it serve at once; false waits for `requant promote`"
    )
    guard: tuple[str, ...] = Field(
        (),
        description="evaluation tasks on which it must not be worse than the base (paired, 95%);"
        " guards auto only",
    )


SecretReference = Annotated[str, Field(pattern=r"^(env|block):[A-Za-z0-9_-]+$")]
"""`env:NAME` of the environment, or `block:NAME`, a Prefect Secret block."""


class CopyAction(Section):
    """Copy the model to a folder, where `current` points at the one that serves."""

    kind: Literal["copy"]
    folder: LocalPath = Field(description="gets a folder per digest and the link `current`")


class CommandAction(Section):
    """Run a program; it finds REQUANT_FOLDER, _MODEL, _VERSION and _DIGEST in its environment."""

    kind: Literal["command"]
    argv: tuple[str, ...] = Field(min_length=1, description="program and arguments; no shell")
    secrets: dict[str, SecretReference] = Field({}, description="environment variable -> secret")
    seconds: Relative = Field(600.0, description="it may take")


class PostAction(Section):
    """Send model, version, digest, uri and scores as JSON to a server."""

    kind: Literal["post"]
    url: str = Field(pattern=r"^https?://[^@]+$", description="no user or password in it")
    token: SecretReference | None = Field(None, description="sent as a bearer token")
    seconds: Relative = Field(30.0, description="it may take")


class Deploy(Section):
    """What deploy_model does with a promoted model."""

    smoke_prompt: str = Field("Hello.", min_length=1, description="what the model must answer")
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
        None, description="http(s)://, sqlite:///; null: sqlite in the state folder"
    )
    pages: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="address of a server that shows what a database in uri holds, for links",
    )
    experiment: str = Field("requant", min_length=1, description="MLflow experiment name")

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError(
                "holds a user or a password, and Prefect keeps every parameter of a run; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the worker runs"
            )
        return value
