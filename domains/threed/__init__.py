"""Structured 3D: so far the two flows of TRELLIS (arXiv 2412.01506) as teachers."""
