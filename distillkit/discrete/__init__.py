"""Discrete diffusion: processes, denoisers, samplers, exact models and exact laws of samplers.

Notation in the whole package: B samples of length d over S real tokens `0 .. S-1`; an absorbing
process adds the mask token S. A position is in one of C states: C = S + 1 with a mask, else C = S.
Times t lie in [0, 1], 1 is noise.
"""
