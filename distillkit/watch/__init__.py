"""Causes of failure, measured before the first step and at validations."""
