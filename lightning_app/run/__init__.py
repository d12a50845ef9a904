"""One condition: command line, recorder, checkpoints."""
