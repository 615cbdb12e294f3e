"""A stage: its contract and key, how it is performed once, planned and put in a process."""
