"""How a task is put to a model. `classify`: a head on its states; `choose`: candidates scored; `generate`: answers."""
