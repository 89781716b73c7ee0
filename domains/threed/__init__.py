"""Structured 3D: shapes in two stages, structure and features.

TRELLIS (arXiv 2412.01506) is one of the teachers.
"""
