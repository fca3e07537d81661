"""Templates of the program text."""
