"""Scores by lm-eval, paired by document, and the gate that judges by them."""
