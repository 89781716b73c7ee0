"""The door: what a user types, and what answers."""
