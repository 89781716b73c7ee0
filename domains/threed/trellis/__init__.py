"""TRELLIS (arXiv 2412.01506) from a local folder: two flow teachers, the decoder between them."""

from domains.threed.trellis.networks import SLatFlowModel, SparseStructureDecoder, SparseStructureFlowModel
from domains.threed.trellis.sparse import occupied
from domains.threed.trellis.teacher import TrellisFeatures, TrellisStructure, load_decoder, rescaled_times

__all__ = [
    "SLatFlowModel",
    "SparseStructureDecoder",
    "SparseStructureFlowModel",
    "TrellisFeatures",
    "TrellisStructure",
    "load_decoder",
    "occupied",
    "rescaled_times",
]
