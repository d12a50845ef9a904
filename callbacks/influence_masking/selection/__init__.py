"""Which weights are selected: candidates, scores, and the exact k lowest."""
