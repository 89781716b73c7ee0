"""Words of evaluation.json: names of rows, beside `student` and `teacher at K steps`."""

BEST, REAL, UNTRAINED = "teacher at its best", "real data", "untrained student"
BASELINE, BEFORE = "baseline", "before"  # `kind` of a row that no model made, and of the untrained student
OWN, BLIND = "own", "blind"  # `network` of a student's row: another one than its teacher's
EARLIER = "earlier"  # `timed` of a row whose time was measured in the run that made its samples
