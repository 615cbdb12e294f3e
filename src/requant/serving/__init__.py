"""A verified model on its way to where it serves."""
