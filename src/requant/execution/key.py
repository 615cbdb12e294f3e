"""The identity of a piece of work: what decides the bytes of its result."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from requant.canonical import digest_of
from requant.config.section import Section
from requant.execution.stage import Stage
from requant.store import ArtifactRef


@dataclass(frozen=True)
class StageKey:
    """The identity of a piece of work, and the fields it is the digest of."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of the fields: equal work has an equal key."""
        return digest_of(dict(self.fields))


def stage_key(
    stage: Stage,
    section: Section,
    inputs: Mapping[str, ArtifactRef],
    seed: int,
    began: str = "",
) -> StageKey:
    """Compute the key of one piece of work.

    Paths, run ids, log levels and worker counts are not in it, so moving a file does not repeat
    the work and changing one of its bytes does.

    Args:
        stage: What is done.
        section: How; only `section.key_fields()` counts.
        inputs: Role to artifact; only the digests count.
        seed: Of every shuffle and initialisation.
        began: When the night first began; only a stage that `reads_anew` has it in its key.

    Raises:
        TerminalError: If content the section points to is missing.
    """
    digests = {role: ref.digest for role, ref in inputs.items()}
    moment = {"began": digest_of(began)} if stage.reads_anew else {}
    return StageKey(
        {
            "stage": stage.name,
            "version": stage.version,
            "config": section.key_fields(),
            "inputs": {**digests, **moment, **stage.content_digests(section)},
            "libraries": _versions(stage.libraries),
            "seed": seed,
        }
    )


@cache
def _version(library: str) -> str:
    return version(library)


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    versions = {library: _version(library) for library in libraries}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions}
