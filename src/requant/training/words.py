"""What is said first of a training."""

from requant.figures import worded

LOSSES = (
    # Of what was saved, where it is known: the steps' own losses are each of another batch.
    worded("held-out loss {} → {}", "heldout_loss_before", "heldout_loss_saved"),
    worded("loss {} → {}", "loss_first", "loss_last"),
)
