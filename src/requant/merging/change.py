"""What a merge did to a tensor, in three norms."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Change:
    """What merging did to one tensor, or to a part of it."""

    update: float = 0.0
    """Squared norm of what the adapter adds, before rounding."""
    error: float = 0.0
    """Squared norm of what rounding takes from it."""
    moved: float = 0.0
    """Squared norm of what is stored less what it starts from."""
    changed: int = 0
    """Weights that are another number than in the model merged into, as it would be stored."""
    weights: int = 0

    def __add__(self, other: "Change") -> "Change":
        return Change(
            self.update + other.update,
            self.error + other.error,
            self.moved + other.moved,
            self.changed + other.changed,
            self.weights + other.weights,
        )

    @property
    def rounding_ratio(self) -> float:
        """Norm of the rounding error over the norm of the update; 0 without an update."""
        return float((self.error / self.update) ** 0.5) if self.update else 0.0

    @property
    def kept_share(self) -> float:
        """Share of the update that is still there after rounding; 1 without an update.

        <M - W, D> / ||D||^2 of start W, update D and stored M, by polarization from the three
        norms. Rounding to nearest drops what is below half a step of the dtype, so it may be far
        below 1: it is no unbiased noise.
        """
        return (self.moved + self.update - self.error) / (2 * self.update) if self.update else 1.0

    @property
    def noise_ratio(self) -> float:
        """Norm of the part of the rounding error that is orthogonal to the update, over its norm.

        0 without an update.
        """
        return float(max(0.0, self.rounding_ratio**2 - (1 - self.kept_share) ** 2) ** 0.5)

    @property
    def changed_share(self) -> float:
        """Share of the weights that changed, 0 to 1."""
        return self.changed / self.weights if self.weights else 0.0
