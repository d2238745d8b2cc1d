"""Training criteria: each a function from logits and targets to one value an utterance."""
