"""Apply a file that `beft export --format steering` wrote to a stock transformers model. No beft needed."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn


def steer(model: nn.Module, file: str) -> list[Any]:
    """Add each vector to the output of the module it is named after; `handle.remove()` of each takes it out again."""

    def adding(vector: Tensor) -> Any:
        return lambda module, args, output: output + vector.to(output)

    base: Any = model.base_model
    return [base.get_submodule(path).register_forward_hook(adding(v)) for path, v in load_file(file).items()]
