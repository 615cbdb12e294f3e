"""How several adapters become one; light, for the command line and the configuration name them."""

from typing import Literal

Combination = Literal["cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
