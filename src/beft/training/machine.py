"""What the machine offers and what is chosen for it: device, precision, attention kernel, threads, token budget.

Every automatic choice is made once, stored with the run and used again when it resumes.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import RecipeError
from ..objectives.packing import out_of_memory as out_of_memory
from .allocator import keep_freed_memory
from .ranks import check_device, own_threads

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EAGER_LIMIT = 512
"""Up to this many tokens plain matmul attention trains faster than the fused kernels on a CPU."""
CPU_TOKEN_BUDGET = {"fp32": 1024, "bf16": 2048}
"""Tokens of a training micro-batch on a CPU: small ones stay in its caches and pad less."""
TOKEN_BUDGET = 32768
"""The same elsewhere."""
CPU_PIECE_COST, PIECE_COST = 48, 8192
"""What one more micro-batch costs beside its tokens, in tokens: dispatch, and reading the weights again."""


@dataclass
class Choices:
    """Resolved settings of a run on one machine."""

    device: str
    dtype: str
    attention: str
    threads: int
    token_budget: int
    pad_multiple: int = 1
    """Batches are padded to a multiple of this (short ones of less): in half precision each new shape costs kernels."""
    quantize: str | None = None
    """How the base is quantised: "8bit", "4bit" or not."""
    gradient_checkpointing: bool = False
    """Whether layers run again during backward instead of keeping their activations."""
    micro_batch_size: int | None = None
    """Rows of a micro-batch at most, besides its tokens; None for as many as the token budget allows."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    def cutting(self, factor: int | None = None) -> dict[str, Any]:
        """How rows are cut into micro-batches: options of `micro_batches`. A factor is for forwards without gradients:
        it multiplies the budget, and no number of rows bounds them."""
        return {
            "token_budget": self.token_budget * (factor or 1),
            "most_rows": None if factor else self.micro_batch_size,
            "piece_cost": CPU_PIECE_COST if self.device == "cpu" else PIECE_COST,
            "multiple": self.pad_multiple,
        }

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
    device = usable_device(device)
    check_device(device)
    avoid_undescribed_amx()
    avoid_attention_plans(device)
    if device == "cpu":
        keep_freed_memory()
    if dtype == "auto":
        dtype = "bf16" if native_bf16(device) else "fp32"
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r}", expected="auto, bf16, fp16 or fp32")
    if dtype == "fp16" and device == "cpu":
        raise RecipeError("dtype 'fp16'", expected="a GPU", found="cpu", remedy="use bf16 or fp32")
    attention = "eager" if device == "cpu" and max_length <= EAGER_LIMIT else "sdpa"
    budget = token_budget or _budget_of_environment() or (CPU_TOKEN_BUDGET[dtype] if device == "cpu" else TOKEN_BUDGET)
    return Choices(device, dtype, attention, own_threads(), budget, 1 if dtype == "fp32" else 8)


@contextmanager
def threads_restored() -> Iterator[None]:
    """Afterwards torch has the number of threads that it had: a resumed run takes the number it began with."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _budget_of_environment() -> int:
    value = os.environ.get("BEFT_TOKEN_BUDGET") or "0"
    if not value.isdigit():
        raise RecipeError("BEFT_TOKEN_BUDGET", expected="a number of tokens", found=repr(value))
    return int(value)


def native_bf16(device: str) -> bool:
    """Whether bf16 matrix products run faster than fp32's: on GPUs that have them, on CPUs with AMX or Arm's bf16.

    AVX-512's bf16 alone proves nothing: its products took half of fp32's time on an AMD Zen and twice fp32's time on an
    Intel Xeon. There a few of them are timed, once a process.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    words, level = _processor()
    if "bf16" in words or ("amx_bf16" in words and _amx_is_described(level)):
        return True
    return "avx512_bf16" in words and _bf16_wins()


@functools.cache
def _bf16_wins() -> bool:
    """Whether this CPU's bf16 products take less than two thirds of fp32's time: the best of several, about 10 ms.

    On one thread and by its own clock where that is fine enough, so that what else the machine does has no say: the
    answer must be the same in every process, or a study that goes on would not know its cells.
    """
    fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if fine else time.perf_counter
    best, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            rows, weight = torch.ones(256, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
            seconds = []
            for _ in range(12):
                began = clock()
                torch.nn.functional.linear(rows, weight)
                seconds.append(clock() - began)
            best[dtype] = min(seconds)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] < best[torch.float32] / 1.5


def avoid_undescribed_amx() -> None:
    """Keep oneDNN off AMX where a virtual machine offers it but hides its tile sizes: bf16 dies by SIGILL there.

    oneDNN reads the sizes from CPUID leaf 0x1d; a machine whose leaves end below it configures empty tiles. Without
    effect after the process's first matrix product, and where ONEDNN_MAX_CPU_ISA is set already.
    """
    words, level = _processor()
    if "amx_tile" in words and not _amx_is_described(level):
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def avoid_attention_plans(device: str) -> None:
    """Keep fused attention on a GPU off cuDNN, which plans anew for every shape, about half a second forward and back.

    PyTorch prefers it on Hopper and Blackwell. Micro-batches of texts come in dozens of shapes: there a bf16 base
    trained five times slower than an fp32 one, which cuDNN's attention does not serve. The other kernels need no plan.
    """
    if device.startswith("cuda"):
        torch.backends.cuda.enable_cudnn_sdp(False)


def _amx_is_described(level: int) -> bool:
    chosen = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return "AMX" in chosen.upper() if chosen else level >= 0x1D


def _processor() -> tuple[set[str], int]:
    """The first processor's feature words and its highest CPUID leaf; empty and 0 where Linux does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return set(), 0
    fields = {key.strip(): value for key, _, value in (line.partition(":") for line in text.splitlines())}
    words = set(fields.get("flags", fields.get("Features", "")).split())
    return words, int(fields.get("cpuid level", 0))


def usable_device(name: str) -> str:
    """The device that "auto" is here, or the named one. Raises RecipeError for one that is not at hand."""
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
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
