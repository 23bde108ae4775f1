"""beft inside other libraries: PEFT, the Trainer, scikit-learn, sentence-transformers, the Hub."""
