"""Frozen models to distil: the contract, exact ones, and ones that live in a folder."""
