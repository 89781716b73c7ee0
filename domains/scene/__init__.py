"""Domain scene: clips of rooms between two views, from a coarse reconstruction."""
