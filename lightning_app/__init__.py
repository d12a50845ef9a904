"""The application: command line, experiment grid, results and report."""

__version__ = "0.1.0"
