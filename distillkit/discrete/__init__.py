"""The mathematics of discrete diffusion: processes, denoisers, samplers, exact models and the exact laws of samplers.

One alphabet of letters runs through the package: B samples of length d over S real tokens `0 ..
    S-1`; an absorbing process
adds the mask token S. A position is in one of C states: C = S + 1 with a mask, else C = S. Times t
    in [0, 1], 1 is noise.
"""
