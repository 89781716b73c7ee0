"""ScoreLiDAR (arXiv 2412.03515): distribution matching, and the structure of the true scene."""

from __future__ import annotations

from torch import Tensor

from distillkit import checks
from distillkit.losses.points import Correspondence, keypoint_loss, scene_loss
from distillkit.methods.base import WEIGHTS
from distillkit.methods.dmd import DMD
from distillkit.teachers.base import Teacher


class ScoreLiDAR(DMD):
    """DMD on sets of points, with two terms that compare the student's scene with the true one.

    The loss is `L_DMD + scene L_scene + point L_point`. Matching alone makes scenes that could be
    true; the terms ask for the one that is. Both see the true scene of each partial scan, so these
    must be the data.

    Args:
        teacher: the frozen teacher.
        scene, point: weights of the scene-wise and the point-wise loss.
        correspondence: which points of the two scenes belong together: nearest neighbours, `nn`, or
            those of one `index`, as released, which collapses scenes.
        squared: the scene-wise loss is a mean square, as published; else a mean distance in metres.
        share: the part of the true points that are drawn at random, in (0, 1].
        key_share: the part of these, the most curved, whose distances are compared, in (0, 1].
        neighbours: the number of true points around each, itself included, by which its curvature
            is known; at least 4, since 3 always lie in a plane.
        **kwargs: as in `DMD`.

    Raises:
        ValueError: a value is out of range.
    """

    requires = frozenset({"denoiser", "data", "points"})

    def __init__(
        self,
        teacher: Teacher,
        scene: float = 0.5,
        point: float = 0.01,
        correspondence: Correspondence = "nn",
        squared: bool = True,
        share: float = 0.1,
        key_share: float = 1 / 3,
        neighbours: int = 180,
        **kwargs,
    ):
        checks.within(WEIGHTS, scene=scene, point=point)
        checks.within("(0, 1]", share=share, key_share=key_share)
        checks.whole(4, neighbours=neighbours)
        if correspondence not in ("nn", "index"):
            raise checks.Unfit("correspondence", correspondence, "be nn or index")
        super().__init__(teacher, **kwargs)
        self.scene, self.point, self.correspondence, self.squared = scene, point, correspondence, squared
        self.keys = {"share": share, "key_share": key_share, "neighbours": neighbours}

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, cond = self.student_samples(batch)
        y, mask = self.teacher.codec.encode(batch), cond.get("mask")
        loss = self.matching(x_g, cond)
        if self.scene:
            loss = loss + self.scene * scene_loss(x_g, y, self.correspondence, self.squared, mask)
        if self.point:
            u = self.rand(y.shape[0] * y.shape[1], "key points").unflatten(0, y.shape[:2])
            loss = loss + self.point * keypoint_loss(x_g, y, u, self.correspondence, **self.keys, mask=mask)
        return loss
