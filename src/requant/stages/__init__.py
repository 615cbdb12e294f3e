"""The stages of a night, one file each: a function from folders to a folder."""
