"""What is trained on a frozen model: a bias adapter, or what one would train in its place. One short file a method.

Read `method` first (the contract), then any method: its first function says what it trains. `registry` finds a method
by name, `written` ties tensors of the model to trained leaves.
"""
