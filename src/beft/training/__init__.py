"""Where the wings meet: a recipe, batches, the loop, checkpoints, and `train`, which calls them in order."""
