"""What a night of a line starts from: the generation that serves, or the original."""

from typing import Literal

from pydantic import Field

from requant.config.section import Section

Policy = Literal["fresh", "continue", "stack", "chain"]


class Generations(Section):
    """How a night builds on the nights before it; each accepted night is a generation.

    Whatever the policy, a night that was refused has no children.
    """

    policy: Policy = Field(
        "fresh",
        description="fresh: a new adapter, merged alone into the original; continue: the adapter "
        "of the generation that serves is trained on; stack: a new adapter on top of its adapters; "
        "chain: its 16-bit result takes the place of the original",
    )
