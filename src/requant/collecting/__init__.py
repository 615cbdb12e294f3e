"""Rows of a night from wherever they lie, each with its place, or with why it cannot be used."""
