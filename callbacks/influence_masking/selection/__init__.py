"""The selection of weights: candidates, scores, and exactly the k lowest."""
