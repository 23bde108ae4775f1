"""What is chosen for a machine: precision by its processor, the attention kernel by the longest row."""

from dataclasses import replace

import pytest
import torch

from beft.training import machine
from beft.training.language import settle_attention
from beft.training.machine import avoid_attention_plans, choose, native_bf16
from tiny import build

AMX = {"avx512_bf16", "amx_bf16", "amx_tile"}


@pytest.mark.parametrize(
    ("words", "level", "wins", "native"),
    [
        (AMX, 0x1F, False, True),  # not timed
        (AMX, 0x16, False, False),  # its tiles are hidden
        (AMX, 0x16, True, True),
        ({"avx512_bf16"}, 0x1F, False, False),
        ({"avx512_bf16"}, 0x10, True, True),
        ({"avx2"}, 0x10, True, False),
        ({"bf16"}, 0, False, True),  # Arm
        (set(), 0, True, False),
    ],
)
def test_bf16_is_native_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, words: set[str], level: int, wins: bool, native: bool
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "_processor", lambda: (words, level))
    monkeypatch.setattr(machine, "_bf16_wins", lambda: wins)
    assert native_bf16("cpu") == native
    assert choose("cpu").dtype == ("bf16" if native else "fp32")


@pytest.mark.parametrize(
    ("device", "longest", "kernel"), [("cpu", 512, "eager"), ("cpu", 513, "sdpa"), ("cuda", 40, "sdpa")]
)
def test_matmul_attention_where_no_row_is_long(device: str, longest: int, kernel: str) -> None:
    model = build("llama", "lm", attn_implementation="sdpa")
    choices = replace(choose("cpu", "fp32", 2048), device=device)
    assert choices.attention == "sdpa"
    settle_attention(model, choices, longest)
    assert choices.attention == model.config._attn_implementation == kernel


def test_attention_on_a_gpu_makes_no_plan_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    for device in ("cpu", "mps", "cuda", "cuda:1"):
        avoid_attention_plans(device)
    assert asked == [False, False]
