"""Words of evaluation.json: names of rows, beside `student` and `teacher at K steps`."""

BEST, REAL = "teacher at its best", "real data"
BASELINE = "baseline"  # `kind` of a row that no model made
EARLIER = "earlier"  # `timed` of a row whose time was measured in the run that made its samples
