"""Processes, shards, strategies and devices."""
