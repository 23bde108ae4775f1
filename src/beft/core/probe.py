"""Tiny inputs for any model, and what one forward of them shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError
from .patches import Patches
from .quantized import keep_gradients


def tiny_inputs(model: nn.Module, rows: int = 2, length: int = 6, seed: int = 0) -> dict[str, Any]:
    """Random valid inputs for a transformers model on its device: `rows` x `length` tokens, or `rows` small images.

    Raises:
        SiteError: the model takes neither tokens nor pixels.
    """
    config: Any = model.config
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        pixels = torch.randn(rows, config.num_channels, *size, generator=generator)
        return {"pixel_values": pixels.to(device=device, dtype=_float_dtype(model))}
    if name != "input_ids":
        raise SiteError(type(model).__name__, expected="a model of tokens or pixels", found=f"a model of {name}")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    special: set[Any] = set()
    for kind in ("pad", "bos", "eos", "decoder_start"):
        token = getattr(text, f"{kind}_token_id", None)
        special.update(token if isinstance(token, (list, tuple)) else [token])  # several end tokens: Llama 3, Gemma
    usable = [token for token in range(min(text.vocab_size, 1000)) if token not in special]
    drawn = torch.randint(len(usable), (rows, length), generator=generator)
    ids = torch.tensor(usable)[drawn].to(device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, : max(2, length - 1)].clone()
    return inputs


def _float_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside, every module's own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    patches = Patches()
    keep_gradients(model, patches)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        patches.undo()
        for module, mode in modes.items():
            module.training = mode


def run_base(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """One forward without a cache of the model below the head: heads ask for more (padding or end tokens)."""
    return _run(getattr(model, "base_model", model), inputs)


def _run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    try:
        return model(**inputs, use_cache=False)
    except TypeError as error:
        if "use_cache" not in str(error):
            raise
        return model(**inputs)


def batch_axis_is_first(model: nn.Module, paths: Sequence[str]) -> None:
    """Show by a tiny forward that the first axis of these modules' outputs is the batch.

    Raises:
        SiteError: it is not (Longformer projects time-major), or a module never ran.
    """
    rows = 3
    base: nn.Module = getattr(model, "base_model", model)
    below = set(base.modules())
    whole = base if all(model.get_submodule(path) in below for path in paths) else model
    shapes: dict[str, torch.Size] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[path] = output.shape

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with evaluating(model):
            _run(whole, tiny_inputs(model, rows=rows))
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        found = f"shape {tuple(shapes[path])}" if path in shapes else "a module that did not run"
        if path not in shapes or shapes[path][0] != rows or len(shapes[path]) < 2:
            raise SiteError(
                path,
                expected=f"an output whose first axis is the batch of {rows} rows",
                found=found,
                remedy="beft cannot give each row its own adapter in this architecture",
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing its progress and its table of missing keys: a new head is what we asked for."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
