"""Protein pipelines of the package diffusers as teachers (extra `hf`)."""

from domains.protein.pipelines.codec import Atoms
from domains.protein.pipelines.data import Designs
from domains.protein.pipelines.design import read_designs
from domains.protein.pipelines.network import NETWORKS, RFD4Proteina
from domains.protein.pipelines.teacher import PipelineBase, ProteinPipeline

__all__ = ["NETWORKS", "Atoms", "Designs", "PipelineBase", "ProteinPipeline", "RFD4Proteina", "read_designs"]
