"""The gradient that masks are made from: its samples, its loss and its mean."""
