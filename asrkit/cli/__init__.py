"""The `asrkit` commands, one file each."""
