"""Clips of moving digits: their sizes and the kinds of motion."""

MOTIONS = ("bounce", "crossing", "drift")
FRAMES = 16  # of a clip
SIDE = 16  # pixels along the side of the canvas
CLASSES = {"label": 10, "motion": len(MOTIONS)}
