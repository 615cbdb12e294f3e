"""The machine a night runs on: processes, long-lived services, words of libraries."""
