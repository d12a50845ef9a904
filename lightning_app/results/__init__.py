"""The results of runs: metrics, records, predictions, statistics and verdicts."""
