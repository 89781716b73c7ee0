"""Names of rows in evaluation.json, beside `student` and `teacher at K steps`."""

BEST, REAL = "teacher at its best", "real data"
