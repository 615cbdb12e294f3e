"""The servers a night talks to: found, started, set up, told whom to tell."""
