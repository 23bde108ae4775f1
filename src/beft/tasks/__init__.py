"""The data wing: examples, their fields, labels and metrics. Knows nothing of models."""
