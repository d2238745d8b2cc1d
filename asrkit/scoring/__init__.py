"""How good a transcript is: error rates, their significance, pictures and RESULTS.md."""
