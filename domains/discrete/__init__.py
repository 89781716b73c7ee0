"""Discrete data: sequences [B, d] int64 of tokens 0 .. S-1.

A mask, where a process has one, is the state S and never in the data.
"""
