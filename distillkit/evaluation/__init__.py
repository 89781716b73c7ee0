"""How close two sets of samples are: generic distances, and the protocol they are measured under."""
