"""From a trained experiment to files that run elsewhere, and the proof that they say the same."""
