"""Prefect flows, one file each."""
