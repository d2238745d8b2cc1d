"""Corpora: each preparer writes `<out>/<set>.jsonl.gz`, and nothing if its input is bad."""
