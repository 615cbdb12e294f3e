"""A version that is to serve."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A version that is to serve."""

    model: str
    version: int
    digest: str
    uri: str
    scores: Mapping[str, float]
