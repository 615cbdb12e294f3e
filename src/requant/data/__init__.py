"""Rows of text: read, brought into one shape, divided, checked and encoded."""
