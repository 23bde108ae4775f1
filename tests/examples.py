"""The scripts of the folder `examples`, as modules."""

import importlib.util
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> Any:
    """The module of `examples/<name>.py`, run anew."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
