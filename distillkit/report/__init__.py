"""The report of a run: page, model card, curves, table of quality, metrics.csv."""
