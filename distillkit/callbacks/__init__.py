"""What watches a run: progress, evaluation, pictures, export."""
