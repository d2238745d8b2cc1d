"""Language models behind one scorer protocol."""
