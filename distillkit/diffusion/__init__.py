"""The mathematics of Gaussian diffusion: processes, denoisers, guidance, samplers, noise levels."""
