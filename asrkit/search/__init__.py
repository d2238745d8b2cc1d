"""From encoder output to hypotheses: greedy and beam search, and the recogniser that people call."""
