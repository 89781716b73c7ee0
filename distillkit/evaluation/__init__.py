"""Evaluation: generic distances between two sets of samples, and the protocol of comparisons."""
