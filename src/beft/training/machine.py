"""What the machine offers and what is chosen for it: device, precision, attention kernel, threads, token budget.

Every automatic choice is made once, stored with the run and used again when it resumes.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import RecipeError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EAGER_LIMIT = 512
"""Up to this many tokens plain matmul attention trains faster than the fused kernels on a CPU."""
TOKEN_BUDGET = {"cpu": 1024}
"""Tokens of a training micro-batch: on a CPU small ones stay in its caches and pad less; elsewhere 32,768."""


@dataclass
class Choices:
    """Resolved settings of a run on one machine."""

    device: str
    dtype: str
    attention: str
    threads: int
    token_budget: int

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The base weights' dtype."""
        return DTYPES[self.dtype]


def choose(
    device: str = "auto", dtype: str = "auto", max_length: int = 128, token_budget: int | None = None
) -> Choices:
    """Resolve "auto": the accelerator if there is one, bf16 where it is native, matmul attention on CPUs.

    The token budget bounds the tokens (padding counted) of one micro-batch; the environment variable BEFT_TOKEN_BUDGET
    sets it too.

    Raises:
        RecipeError: a device or dtype that is not at hand.
    """
    device = _device(device)
    if dtype == "auto":
        dtype = "bf16" if native_bf16(device) else "fp32"
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r}", expected="auto, bf16, fp16 or fp32")
    if dtype == "fp16" and device == "cpu":
        raise RecipeError("dtype 'fp16'", expected="a GPU", found="cpu", remedy="use bf16 or fp32")
    attention = "eager" if device == "cpu" and max_length <= EAGER_LIMIT else "sdpa"
    budget = token_budget or _budget_of_environment() or TOKEN_BUDGET.get(device.split(":")[0], 32768)
    return Choices(device, dtype, attention, torch.get_num_threads(), budget)


def _budget_of_environment() -> int:
    value = os.environ.get("BEFT_TOKEN_BUDGET") or "0"
    if not value.isdigit():
        raise RecipeError("BEFT_TOKEN_BUDGET", expected="a number of tokens", found=repr(value))
    return int(value)


def native_bf16(device: str) -> bool:
    """Whether bf16 matrix products run in hardware here (elsewhere they are many times slower than fp32)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    words = set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})


def _device(name: str) -> str:
    at_hand = ["cpu"]
    if torch.cuda.is_available():
        at_hand.insert(0, "cuda")
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        at_hand.insert(0, "mps")
    if name == "auto":
        return at_hand[0]
    if name.split(":")[0] not in at_hand:
        raise RecipeError(f"device {name!r}", expected=f"one of auto, {', '.join(at_hand)}", found="none such here")
    return name


def peak_memory_mib(device: str) -> float:
    """Most memory used so far: of the device if it is a GPU, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
