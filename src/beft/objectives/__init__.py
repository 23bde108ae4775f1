"""How a task is put to a model. `classify`: a head on the model's states."""
