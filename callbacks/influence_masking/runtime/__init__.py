"""Processes, shards and strategies: where the other parts run."""
