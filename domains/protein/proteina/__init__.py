"""Proteina (arXiv 2503.00710): its network and a teacher.

The network has the released names; the teacher reads a folder of `domains.protein.convert`.

Proteina counts time from noise to data, tau = 1 - t, and writes `x_tau = (1 - tau) eps + tau x_0`:
our rectified flow from its other end. Positions are C-alpha atoms in nanometres, centred, in both.
"""

from domains.protein.proteina.features import FOLDS
from domains.protein.proteina.network import ProteinaTransformer
from domains.protein.proteina.teacher import CATH, Proteina, sde

__all__ = ["CATH", "FOLDS", "Proteina", "ProteinaTransformer", "sde"]
