"""Which samples an optimizer step sees: whole passes, similar lengths together, by one seed."""

import random
from collections.abc import Sequence

GROUPED_STEPS = 50
"""Steps whose samples are sorted by length together: enough to leave 1 % of padding instead of 28 %
(docstrings, 8 a step), few enough that the order stays random."""


def samples_to_see(samples: int, per_step: int, *, steps: int | None, epochs: float | None) -> int:
    """Return how many samples a training sees, counting each pass anew.

    Args:
        samples: There are, at least one.
        per_step: Of one optimizer step.
        steps: Optimizer steps; each sees `per_step` samples.
        epochs: Passes over the samples, used where `steps` is None. 3 samples and 10 epochs are
            30 whatever the batch; the last step sees what is left.
    """
    if steps is not None:
        return steps * per_step
    return max(1, round((epochs or 1) * samples))


def training_order(lengths: Sequence[int], per_step: int, total: int, seed: int) -> list[int]:
    """Lay out the samples of a whole training, one step after the other.

    Each pass sees every sample once, in an order of its own. Within `GROUPED_STEPS` steps samples
    of similar length share a step, so that little is padded; the steps themselves are shuffled. The
    very first step holds the longest sample: memory that does not suffice is known at once.

    With lengths [9, 1, 8, 2, 1] and two samples a step a pass may be [0, 2 | 4, 1 | 3], and the
    next pass begins by filling the third step.

    Args:
        lengths: Tokens of each sample.
        per_step: Samples of one optimizer step.
        total: Samples to lay out, from `samples_to_see`.
        seed: Of the order.

    Returns:
        `total` indices into `lengths`; each `per_step` of them are one step.
    """
    order: list[int] = []
    number = 0
    while len(order) < total:
        draw = random.Random(f"{seed}-pass-{number}")
        drawn = draw.sample(range(len(lengths)), len(lengths))
        if number == 0:
            longest = max(drawn, key=lambda index: lengths[index])
            # Otherwise it might be among those that fill no step.
            drawn.insert(0, drawn.pop(drawn.index(longest)))
        to_fill = -len(order) % per_step
        order += drawn[:to_fill]
        steps = _grouped(drawn[to_fill:], lengths, per_step, draw)
        if number == 0:
            steps.sort(key=lambda step: longest not in step)
        order += [index for step in steps for index in step]
        number += 1
    return order[:total]


def padding_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """Return the share of padding among the tokens the model computes, 0 to 1.

    Args:
        lengths: Tokens of each sample.
        order: From `training_order`.
        batch_size: Samples of one forward pass, all padded to the longest of them.
    """
    seen = [lengths[index] for index in order]
    batches = (seen[start : start + batch_size] for start in range(0, len(seen), batch_size))
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(seen) / computed


def _grouped(
    drawn: Sequence[int], lengths: Sequence[int], per_step: int, draw: random.Random
) -> list[list[int]]:
    """Cut samples into steps of similar length, longest first within; what fills none is last."""
    whole = len(drawn) - len(drawn) % per_step
    steps: list[list[int]] = []
    for start in range(0, whole, GROUPED_STEPS * per_step):
        part = drawn[start : min(start + GROUPED_STEPS * per_step, whole)]
        part = sorted(part, key=lambda index: -lengths[index])
        steps += [list(part[first : first + per_step]) for first in range(0, len(part), per_step)]
    draw.shuffle(steps)
    return [*steps, list(drawn[whole:])] if whole < len(drawn) else steps
