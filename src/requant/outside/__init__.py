"""The door: what comes from outside is parsed here, with limits, before anything else reads it.

Files are plain ones of a bounded size; JSON and YAML have bounded depth and number of entries;
patterns run in a process that can be stopped, as do looks at whole models and datasets
(`requant.machine.looking`).
"""
