"""Where everything lies below the state folder, and the reference that travels between stages."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


OWN = frozenset(
    {
        *("objects", "actions", "answers", "attempts", "pins", "ledgers", "lines", "deployments"),
        *("work", "tmp"),
        *("locks", "results", "preflight", "services", "access", "logs", "reports", "sealed"),
        *("prefect", "prefect-pages", "mlartifacts"),
    }
)
"""Names below the state folder that requant, Prefect and MLflow write, read and delete."""
DATABASE = "mlflow.db"
"""MLflow's, unless `tracking.uri` names another; journals, lock and draft lie beside it."""


def is_own(name: str) -> bool:
    """Tell whether requant, Prefect or MLflow keep something of this name in the state folder."""
    return name in OWN or name.removeprefix(".").startswith(DATABASE)


class ArtifactRef(BaseModel):
    """What one stage hands to the next: never a model, never a bare path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="model, adapter, dataset or evaluation")
    digest: Digest = Field(description="sha256 of the canonical manifest")
    uri: str = Field(description="file:// address of the folder")

    @property
    def short(self) -> str:
        """The first 12 hex digits, as people write it."""
        return self.digest[:12]


@dataclass(frozen=True)
class Store:
    """The state folder. Holds no state of its own, only the layout."""

    root: Path

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def actions(self) -> Path:
        return self.root / "actions"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def use_lock(self) -> Path:
        """Held shared by whoever publishes, exclusively by who collects garbage."""
        return self.lock_path("use")

    def object_path(self, digest: str) -> Path:
        """Folder of the artifact with this digest (64 hex digits)."""
        return self.objects / digest[:2] / digest

    def record_path(self, key: str) -> Path:
        """File of the record with this stage key (64 hex digits)."""
        return self.actions / f"{key}.json"

    def draft_path(self, key: str) -> Path:
        """Fresh folder in which the stage with this key makes its artifact."""
        return self.tmp / f"{key}-{uuid.uuid4().hex}"

    def work_path(self, key: str) -> Path:
        """Resumable scratch of the stage with this key."""
        return self.root / "work" / key

    def lock_path(self, name: str) -> Path:
        """Lock file of this name."""
        return self.root / "locks" / name

    def night_lock(self, line: str) -> Path:
        """Held by the night of a model line for as long as it lasts."""
        return self.lock_path(f"night-{line}")

    def stage_lock(self, key: str) -> Path:
        """Held by who does the work with this key."""
        return self.lock_path(f"stage-{key}")

    def attempt_path(self, key: str) -> Path:
        """File that says what came of the last attempt at work that is not done."""
        return self.root / "attempts" / f"{key}.json"

    def preflight_path(self, key: str) -> Path:
        """Empty file that says a look before the night found this right."""
        return self.root / "preflight" / key

    def results_path(self) -> Path:
        """Folder of Prefect's own task results: small JSON files named by stage key."""
        return self.root / "results"

    @property
    def sealed_mark(self) -> Path:
        """Empty file: every document here is sealed. A store of an earlier version has none."""
        return self.root / "sealed"

    def answers_path(self, key: str) -> Path:
        """File that says where a model's answers are."""
        return self.root / "answers" / f"{key}.json"

    @property
    def pins(self) -> Path:
        return self.root / "pins"

    @property
    def ledgers(self) -> Path:
        return self.root / "ledgers"

    @property
    def lines(self) -> Path:
        return self.root / "lines"

    @property
    def deployments(self) -> Path:
        return self.root / "deployments"

    def pin_path(self, name: str) -> Path:
        """File that names an artifact no collection may take."""
        return self.pins / name

    def ledger_path(self, line: str) -> Path:
        """File of the gate's verdicts on a model line."""
        return self.ledgers / f"{line}.json"

    def line_path(self, line: str) -> Path:
        """File of the head of a model line."""
        return self.lines / f"{line}.json"

    def deployment_path(self, model: str) -> Path:
        """Record of what was deployed last of a registered model."""
        return self.deployments / f"{model}.json"

    def service_path(self, name: str) -> Path:
        """File that names the process of a service `requant up` started."""
        return self.root / "services" / name

    def access_path(self, name: str) -> Path:
        """File that lets its reader use the servers `requant up` started."""
        return self.root / "access" / name

    @property
    def prefect_pages(self) -> Path:
        """Copy of the pages of Prefect's server, with one more that logs a browser in."""
        return self.root / "prefect-pages"

    def log_path(self, name: str) -> Path:
        """Log file of this name."""
        return self.root / "logs" / name

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def report_path(self, run: str) -> Path:
        """The HTML report of one flow run; its lineage page lies beside it."""
        return self.reports / run / "report.html"

    def nights_path(self, line: str) -> Path:
        """The page of all nights of a model line."""
        return self.reports / f"{line}.html"

    def ref(self, kind: str, digest: str) -> ArtifactRef:
        """Make the reference of an artifact in this store."""
        uri = self.object_path(digest).resolve().as_uri()
        return ArtifactRef(kind=kind, digest=digest, uri=uri)
