"""Neural building blocks; each encoder and predictor has an explicit streaming state."""
