"""How a frozen base is held in memory: quantised to 8 or 4 bits, and spread over devices.

8bit is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): weights in int8 by rows, inputs rounded by tokens except
columns with outliers, which are found over the whole batch, so that a row's rounding depends on its neighbours (in
training on a CPU inputs are not rounded, and it does not). 4bit is NF4 with double quantisation (QLoRA, Dettmers et al.
2023, arXiv:2305.14314): weights alone are rounded, and rows are independent. Heads and poolers stay as they are.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError
from ..launcher import place
from .machine import Choices

KINDS = ("8bit", "4bit")
DeviceMap = str | Mapping[str, str | int]
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


def chosen(quantize: str | None, trained: str | None = None) -> str | None:
    """`quantize` checked: "8bit", "4bit" or None; "none" means None, and None what training used.

    Raises:
        RecipeError: another word.
    """
    if quantize is None:
        return trained
    if quantize == "none":
        return None
    if quantize not in KINDS:
        raise RecipeError(f"quantize {quantize!r}", expected="8bit, 4bit or none")
    return quantize


def read_device_map(text: str | None) -> DeviceMap | None:
    """A device map from a command line: a word, a device, or a JSON object of module paths and devices.

    Raises:
        RecipeError: JSON that cannot be read, or of another kind.
    """
    if text is None or not text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecipeError("device_map", expected="JSON", found=f"text that is none ({error})") from error
    if not isinstance(value, dict):
        raise RecipeError("device_map", expected='an object such as {"": "cpu"}', found=text)
    return value


def loading_keywords(
    quantize: str | None,
    device_map: DeviceMap | None,
    choices: Choices,
    *,
    quantized_already: str | None = None,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Keywords for `from_pretrained`; empty for a plain base on one device, which is then moved there.

    Args:
        quantize: "8bit", "4bit" or None.
        device_map: as transformers takes it; "disk" for modules that are read whenever they run.
        quantized_already: the method of a checkpoint that is quantised, such as "gptq".
        keep: paths of modules that are not quantised.

    Raises:
        RecipeError: a package is missing, or the device or the checkpoint cannot be used so.
    """
    quantize = chosen(quantize)
    if quantize is None and device_map is None and quantized_already is None:
        return {}
    if quantize is not None and quantized_already is not None:
        raise RecipeError(
            f"quantize {quantize!r}",
            expected="a base in plain weights",
            found=f"one that is quantised already ({quantized_already})",
            remedy="leave --quantize out",
        )
    if device_map is not None and place().size > 1:
        raise RecipeError(
            "device_map",
            expected="one process, or a device for each",
            found=f"{place().size} processes and a base spread over devices",
            remedy="leave --device-map out, or start without a launcher",
        )
    what = "device_map" if quantize is None else f"quantize {quantize!r}"
    _require("accelerate", what)
    placed = _checked_map(device_map) if device_map is not None else {"": choices.device}
    keywords: dict[str, Any] = {"device_map": placed}
    if isinstance(placed, dict) and "disk" in placed.values():
        if quantize is not None:
            raise RecipeError(
                "device_map", expected="devices alone, for a quantised base", found="'disk'", remedy="leave one out"
            )
        keywords["offload_folder"] = tempfile.mkdtemp(prefix="beft-offload-")
    if quantize is not None:
        keywords["quantization_config"] = _bitsandbytes(quantize, choices, placed, list(keep))
    return keywords


def clean_up(model: nn.Module, keywords: Mapping[str, Any]) -> None:
    """Remove the folder of weights that were put on disk when the model is no longer in use."""
    if "offload_folder" in keywords:
        weakref.finalize(model, shutil.rmtree, keywords["offload_folder"], ignore_errors=True)


def _bitsandbytes(quantize: str, choices: Choices, placed: str | dict[str, Any], keep: list[str]) -> Any:
    _require("bitsandbytes", f"quantize {quantize!r}")
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of optional kernels
    try:
        import bitsandbytes
    finally:
        log.setLevel(level)
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_without_casts)
    devices = {choices.device} if isinstance(placed, str) else {str(device) for device in placed.values()}
    unfit = sorted(_kind(device) for device in devices if _kind(device) not in bitsandbytes.supported_torch_devices)
    if unfit:
        raise RecipeError(
            f"quantize {quantize!r}",
            expected=f"a device of bitsandbytes ({', '.join(sorted(bitsandbytes.supported_torch_devices))})",
            found=unfit[0],
        )
    from transformers import BitsAndBytesConfig

    skipped = {"llm_int8_skip_modules": keep} if keep else {}
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choices.torch_dtype,
        **skipped,
    )


def _without_casts(record: logging.LogRecord) -> bool:
    """8-bit products say at every call that fp32 inputs are cast to fp16 for their rounding."""
    return "inputs will be cast" not in str(record.msg)


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RecipeError(
            what, expected=f"the package {package}", found="none", remedy="install it: pip install 'beft[quantize]'"
        )


def _checked_map(device_map: DeviceMap) -> str | dict[str, Any]:
    if isinstance(device_map, str):
        if device_map not in SPREADS:
            _at_hand(device_map)
            return {"": device_map}
        return device_map
    if not device_map or not all(isinstance(path, str) for path in device_map):
        raise RecipeError("device_map", expected='module paths and devices, such as {"": "cpu"}', found=f"{device_map}")
    for device in device_map.values():
        if device != "disk":
            _at_hand(device)
    return dict(device_map)


def _at_hand(device: str | int) -> None:
    """Raises RecipeError for a device that torch does not know or this machine does not have."""
    name = f"cuda:{device}" if isinstance(device, int) and not isinstance(device, bool) else str(device)
    found = "no such device here"
    try:
        place = torch.device(name)
    except RuntimeError:
        found = "no device's name"
    else:
        backends: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}
        if place.type == "cpu" or (place.type in backends and (place.index or 0) < backends[place.type].device_count()):
            return
    raise RecipeError(
        f"device_map {name!r}",
        expected=f"a device, disk, or one of {', '.join(SPREADS)}",
        found=found,
        remedy='write "auto", a device, or JSON such as {"": "cpu"}',
    )


def _kind(device: str) -> str:
    return "cuda" if device.isdigit() else device.partition(":")[0]
