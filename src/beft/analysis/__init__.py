"""What results mean: importance scores of bias terms, and statistics over examples, seeds and tasks."""
