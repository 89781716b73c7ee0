"""Protein backbones as C-alpha traces.

Sources: Proteina (arXiv 2503.00710); its few-step students (arXiv 2510.03095).
"""
