"""Folding an adapter into plain weights: a stock transformers model with the outputs of the attached one.

How a vector gets into a model depends on what its architecture offers, tried in this order:

1. **bias**: the site's module has a bias; the vector is added to it, on the term's rows.
2. **switch**: the architecture's config can give its projections biases (`attention_bias` and its kin). Which option
   does is found by building the model with the option off and on and comparing parameter names: some configs accept an
   option that does nothing. All other new biases are zero.
3. **fold** (value terms): rows of softmax sum to one, so a value bias is the constant `W_o repeat_kv(b_v)` behind the
   output projection. It goes into that projection's bias, own or switched on; or, where attention and feed-forward part
   run side by side and are summed (GPT-J, CodeGen), into the bias of the feed-forward part's output.

Where none of them exists (T5, MPT, Mixtral) the error says so. Weights that do not change are shared, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BankError, StoreError
from .adapter import Adapter, LinearHead, ModelHead
from .bank import Bank, attach
from .families import PARALLEL_OUTPUT
from .probe import evaluating, run_base, tiny_inputs
from .sites import Site, get_module
from .verify import repeat_heads

SWITCHES = ("attention_bias", "use_qkv_bias", "qkv_bias", "use_bias", "bias", "enable_bias")
"""Config options that switch biases on somewhere; each is tried on the architecture at hand before it is believed."""


@dataclass(frozen=True)
class Merge:
    """A merged model, the way each module took, and the largest difference of outputs from the attached model's.

    `error` is relative to the largest output, measured on tokens without padding. `head` is a linear head that has no
    place in the architecture and stays beside the model.
    """

    model: nn.Module
    ways: Mapping[str, str]
    error: float
    switched: str = ""
    head: LinearHead | None = None

    @property
    def way(self) -> str:
        """The ways in one word or two."""
        return " and ".join(dict.fromkeys(self.ways.values())) or "no vectors"


def merge(model: nn.Module, adapter: str | Path | Mapping[str | Path, float]) -> nn.Module:
    """A plain copy of `model` with an adapter folded in: no hooks, no beft needed to load what it saves.

    `model` itself does not change, and shares every weight that is the same: keeping it is how a merge is taken back.
    `adapter` is an adapter folder, or several with weights, `{"out/a": 0.5, "out/b": 0.5}`. See `merged` for a report.

    Raises:
        BankError: the architecture has no place for a vector, the model is attached or was merged before, or the merged
            outputs differ.
        StoreError: see `Bank.load`.
    """
    return merged(model, adapter).model


def merged(model: nn.Module, adapter: str | Path | Mapping[str | Path, float]) -> Merge:
    """`merge` with its report. Raises as `merge` does."""
    if getattr(model, "beft_merged", None):
        raise BankError(
            type(model).__name__,
            expected="a base model",
            found=f"one with {model.beft_merged} merged in already",
            remedy="merge into the base; several adapters merge at once with weights",
        )
    bank = attach(model, "none", names=[])  # refuses a model that has a bank
    try:
        one = _load(bank, adapter)
        bank.active = one.name
        inputs = tiny_inputs(model)
        expected = _outputs(model, inputs)
    finally:
        bank.detach()
    result = fold(model, one)
    plain: Any = result.model
    plain.beft_merged = one.name
    return replace(result, error=_compare(plain, inputs, expected))


def _load(bank: Bank, adapter: str | Path | Mapping[str | Path, float]) -> Adapter:
    if isinstance(adapter, (str, Path)):
        return bank.load(adapter)
    names = {bank.load(folder, name=f"part {number}").name: w for number, (folder, w) in enumerate(adapter.items())}
    return bank.combine("merged", names)


def fold(model: nn.Module, adapter: Adapter) -> Merge:
    """The merged copy without a check of its outputs. Raises BankError where the architecture has no place."""
    plain = _share(model)
    ways: dict[str, str] = {}
    homeless: list[str] = []
    shifts = {path: _shift(adapter, path) for path in adapter.modules_with_vectors}
    for path, shift in shifts.items():
        if _has_bias(get_module(plain, path)):
            _add_to_bias(get_module(plain, path), shift)
            ways[path] = "bias"
        else:
            homeless.append(path)
    switched = ""
    if homeless:
        switched, homeless = _switch(plain, model, homeless, shifts, adapter, ways)
    for path in homeless:
        ways[path] = _fold_value(plain, adapter, path, shifts[path])
    _place_head(plain, adapter)
    plain.requires_grad_(True)
    return Merge(plain, ways, 0.0, switched, adapter.head if isinstance(adapter.head, LinearHead) else None)


# ---- ways ------------------------------------------------------------------------------------------------------------


def _shift(adapter: Adapter, path: str) -> Tensor:
    shift = adapter.shift(path)
    assert shift is not None
    return shift.detach().float()


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)


def _add_to_bias(module: nn.Module, shift: Tensor) -> None:
    """A new bias parameter: the old values stay where the original model has them."""
    old: Any = module.bias
    module.bias = nn.Parameter((old.detach().float() + shift.to(old.device)).to(old.dtype))


def _switch(
    plain: nn.Module,
    model: nn.Module,
    homeless: list[str],
    shifts: Mapping[str, Tensor],
    adapter: Adapter,
    ways: dict[str, str],
) -> tuple[str, list[str]]:
    """Switch biases on by the option that helps most; give its name and the modules that still have none."""
    outputs = {site.output for site in adapter.sites if site.module in homeless and site.term.name == "value"}
    best: tuple[int, str, dict[str, torch.Size]] | None = None
    for option in SWITCHES:
        added = _parameters_added(model, option)
        direct = sum(f"{path}.bias" in added for path in homeless)
        indirect = sum(f"{path}.bias" in added for path in outputs)
        gain = 1000 * (direct * 2 + indirect) - len(added)  # prefer biases of the sites, then few others
        if (direct or indirect) and (best is None or gain > best[0]):
            best = (gain, option, added)
    if best is None:
        return "", homeless
    _, option, added = best
    direct_all = [path for path in homeless if f"{path}.bias" in added]
    if not direct_all and all(_has_bias(get_module(plain, path)) for path in outputs):
        return "", homeless  # the output projection has a bias of its own to fold into
    for name, shape in added.items():
        owner = get_module(plain, name.removesuffix(".bias"))
        weight: Any = owner.weight
        owner.bias = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    setattr(plain.config, option, True)
    for path in direct_all:
        _add_to_bias(get_module(plain, path), shifts[path])
        ways[path] = f"switch {option}"
    return option, [path for path in homeless if path not in direct_all]


def _parameters_added(model: nn.Module, option: str) -> dict[str, torch.Size]:
    """Biases that the architecture gets when an option of its config is switched on; empty if that does nothing."""
    config = model.config
    if getattr(config, option, None) is not False:
        return {}
    off, on = copy.deepcopy(config), copy.deepcopy(config)
    setattr(on, option, True)
    try:
        with torch.device("meta"):
            without, having = (dict(type(model)(each).named_parameters()) for each in (off, on))
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return {}
    if set(without) - set(having) or any(not name.endswith(".bias") for name in set(having) - set(without)):
        return {}
    return {name: having[name].shape for name in having if name not in without}


def _fold_value(plain: nn.Module, adapter: Adapter, path: str, shift: Tensor) -> str:
    """Fold a value vector into a bias behind W_o; gives the way taken."""
    sites = [site for site in adapter.sites if site.module == path]
    if any(site.term.name != "value" or not site.output for site in sites):
        terms = ", ".join(site.term.symbol for site in sites)
        raise _no_place(plain, path, f"{terms} can only be merged as a bias, and {path} can have none")
    site = sites[0]
    if site.shared > 1:
        raise _no_place(plain, path, "a shared layer without a bias")
    projection = get_module(plain, site.output)
    constant = residual_constant(projection, site, site.narrow(shift))
    if _has_bias(projection):
        _add_to_bias(projection, constant)
        return "fold into " + site.output.rpartition(".")[2]
    parallel = PARALLEL_OUTPUT.get(str(getattr(plain.config, "model_type", "")))
    if parallel is not None:
        layer = site.module[: site.module.rindex(f".{site.layer}.")] + f".{site.layer}"
        _add_to_bias(get_module(plain, f"{layer}.{parallel}"), constant)
        return "fold into " + parallel
    raise _no_place(plain, path, "neither the value projection nor anything behind it can have a bias")


def residual_constant(projection: nn.Module, site: Site, vector: Tensor) -> Tensor:
    """`W_o repeat_kv(b_v)` in fp32, shape (hidden,): what a value vector (site.width,) adds behind W_o everywhere."""
    weight: Any = projection.weight
    matrix = weight.detach().float()
    if not isinstance(projection, nn.Linear) and type(projection).__name__ == "Conv1D":
        matrix = matrix.T
    wide = repeat_heads(vector.to(matrix.device), site.head_width, matrix.shape[1])
    return matrix @ wide


def _no_place(model: nn.Module, path: str, why: str) -> BankError:
    return BankError(
        f"merge into {type(model).__name__}",
        expected=f"a place for the vector of {path}",
        found=why,
        remedy="the adapter works attached, and stock PEFT loads it where its projections are nn.Linear",
    )


# ---- copies, heads, checks -------------------------------------------------------------------------------------------


def _share(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the original's own tensors."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    plain: Any = copy.deepcopy(model, memo)
    for path, module in plain.named_modules():  # parameters of its own, so that flags do not leak into the original
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is not None and f"{path}.{name}".lstrip(".") in flags:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    if hasattr(plain, "tie_weights"):
        plain.tie_weights()
    return plain


def _place_head(plain: Any, adapter: Adapter) -> None:
    head = adapter.head
    if not isinstance(head, ModelHead):
        return
    for path in head.paths:
        original = get_module(plain, path)
        like = next(original.parameters())
        plain.set_submodule(path, copy.deepcopy(head.module(path)).to(device=like.device, dtype=like.dtype))
    if head.labels is not None:
        plain.config.id2label = dict(enumerate(head.labels))
        plain.config.label2id = {label: number for number, label in enumerate(head.labels)}
    if hasattr(plain, "num_labels"):
        plain.num_labels = head.outputs


def _outputs(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with evaluating(model):
        return run_base(model, inputs)[0].float()


def _compare(plain: nn.Module, inputs: dict[str, Any], expected: Tensor) -> float:
    """Largest difference of outputs relative to the largest; raises if it is more than rounding."""
    found = _outputs(plain, inputs)
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    dtype = next(p.dtype for p in plain.parameters() if p.is_floating_point())
    allowed = {torch.float32: 1e-5, torch.float64: 1e-5}.get(dtype, 5e-2)
    if not error <= allowed:
        raise BankError(
            f"merge into {type(plain).__name__}",
            expected=f"the attached model's outputs to {allowed:g}",
            found=f"a difference of {error:.2g}",
            remedy="use the adapter attached, and report the architecture",
        )
    return error


def save_merged(result: Merge, tokenizer: Any, directory: str | Path) -> Path:
    """Write a merged model (and its tokenizer) as a stock checkpoint into a new or empty folder.

    Raises:
        StoreError: the folder is not empty or cannot be written.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(str(target), expected="a new or empty folder", found="files there", remedy="choose another")
    part = target.with_name(f".{target.name}.part")
    try:
        parts: Sequence[Any] = [result.model, *([tokenizer] if tokenizer is not None else [])]
        for each in parts:
            each.save_pretrained(part)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise StoreError(str(target), expected="a folder that can be written", found=str(error)) from error
    return target
