"""Prefect tasks, one file per stage, and the policy they share."""
