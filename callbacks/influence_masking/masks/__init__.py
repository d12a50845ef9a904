"""What is selected, kept as bits, and held while others train."""
