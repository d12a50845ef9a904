"""Many conditions: the grid, its schedule, and where it runs."""
