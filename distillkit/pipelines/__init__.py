"""Pipelines of the package diffusers, of any domain (extra `hf`)."""
