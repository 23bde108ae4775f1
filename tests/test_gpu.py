"""On a GPU: what the CPU gives, memory that runs short for real, precision, and adapters that change machines.

Skipped where there is none. The rest of the suite takes a GPU too, wherever a test leaves the device to beft.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import beft
import real
from bases import bert, llama
from beft.tasks.load import benchmark_task
from core.common import fill
from toys import fast, same_tensors, toy_task
from training.common import Notes, learn
from training.test_many import tensors
from training.test_prompts import choosing, decoder, writing
from training.test_prompts import recipe as prompt_recipe

__all__ = ["bert", "decoder", "llama"]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def little_memory() -> Iterator[Any]:
    """Call it with GiB: what this process may take of the GPU."""

    def limit(gib: float) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_training_gives_what_the_cpu_gives(request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    base, task = request.getfixturevalue(family), toy_task()
    found = {device: learn(base, task, fast(), device=device, out=tmp_path / device) for device in ("cpu", "cuda")}
    assert found["cuda"].choices.device == "cuda"
    same_tensors(tensors(tmp_path / "cuda"), tensors(tmp_path / "cpu"), 1e-4)
    assert found["cuda"].evaluation == pytest.approx(found["cpu"].evaluation, abs=1e-6)


@pytest.mark.parametrize("task", [choosing(), writing()], ids=["choosing", "writing"])
def test_a_language_model_learns_what_it_learns_on_the_cpu(decoder: Path, tmp_path: Path, task: Any) -> None:
    found = {
        device: learn(decoder, task, prompt_recipe(), device=device, out=tmp_path / device)
        for device in ("cpu", "cuda")
    }
    same_tensors(tensors(tmp_path / "cuda"), tensors(tmp_path / "cpu"), 1e-3)
    assert found["cuda"].history[-1]["train_loss"] == pytest.approx(found["cpu"].history[-1]["train_loss"], rel=1e-3)


def test_runs_in_company_are_those_alone(bert: Path, tmp_path: Path) -> None:
    task = toy_task()
    plans = [beft.Plan(f"run{seed}", fast(seed=seed, lr=0.003 * (1 + seed))) for seed in range(12)]
    options: dict[str, Any] = {"device": "cuda", "dtype": "fp32", "with_baselines": False}
    beft.train_many(str(bert), task, plans, tmp_path / "bank", **options)
    for plan in plans[::4]:
        assert plan.recipe is not None
        learn(bert, task, plan.recipe, device="cuda", out=tmp_path / plan.name)
        same_tensors(tensors(tmp_path / "bank" / plan.name), tensors(tmp_path / plan.name), 1e-4)


def test_rows_of_many_adapters_get_their_own(bert: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(bert).eval().to("cuda")
    names = [f"adapter{number}" for number in range(20)]
    bank = fill(beft.attach(model, "value", names=names))
    ids = torch.randint(4, 40, (20, 11), generator=torch.Generator().manual_seed(0)).to("cuda")
    with torch.no_grad(), bank.route(names):
        together = model(input_ids=ids).last_hidden_state
    for row, name in enumerate(names):
        with torch.no_grad(), bank.route(name):
            alone = model(input_ids=ids[row : row + 1]).last_hidden_state
        assert (together[row] - alone[0]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_gives_the_same_bits_twice(tmp_path: Path, dtype: str) -> None:
    task, base = benchmark_task("sst2", size=64, eval_size=32), real.model("minilm-l6-uncased")
    recipe = beft.Recipe(epochs=2, selection="none", dropout=0.1, batch_size=16)
    for name in ("first", "second"):
        learn(base, task, recipe, device="cuda", dtype=dtype, out=tmp_path / name)
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_memory_that_runs_short_halves_the_budget_and_changes_nothing(little_memory: Any) -> None:
    task = benchmark_task("sst2", size=64, eval_size=8)
    long = [replace(example, texts=(" ".join(example.texts * 40),)) for example in task.train]
    task, base = replace(task, train=long), real.model("minilm-l6-uncased")
    recipe = beft.Recipe(epochs=1, selection="none", batch_size=64, max_length=256)
    whole = learn(base, task, recipe, device="cuda", token_budget=2**14)
    peak = torch.cuda.max_memory_allocated() / 2**30
    notes = Notes()
    little_memory(0.6 * peak)
    short = learn(base, task, recipe, device="cuda", token_budget=2**14, listener=notes)
    assert [note for note in notes.notes if "memory ran short" in note]
    assert short.choices.token_budget < whole.choices.token_budget == 2**14
    assert short.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-3)
    assert short.evaluation == pytest.approx(whole.evaluation, abs=0.13)  # one row of eight


def test_bf16_scores_as_fp32_does() -> None:
    task, base = benchmark_task("sst2", size=300, eval_size=300), real.model("minilm-l6-uncased")
    found = {dtype: learn(base, task, beft.Recipe(), device="cuda", dtype=dtype) for dtype in ("fp32", "bf16")}
    assert min(each.evaluation["accuracy"] for each in found.values()) > 0.7
    assert found["bf16"].evaluation["accuracy"] == pytest.approx(found["fp32"].evaluation["accuracy"], abs=0.04)


def test_layers_that_run_again_learn_the_same(decoder: Path, tmp_path: Path) -> None:
    for name, again in (("kept", False), ("again", True)):
        learn(decoder, choosing(), prompt_recipe(), device="cuda", out=tmp_path / name, gradient_checkpointing=again)
    same_tensors(tensors(tmp_path / "again"), tensors(tmp_path / "kept"), 1e-4)


def test_an_adapter_changes_machines(bert: Path, tmp_path: Path) -> None:
    """Trained on one device it answers the same on the other, from Python and from the command line."""
    task = toy_task()
    texts = [example.texts[0] for example in task.evaluation["evaluation"]]
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        learn(bert, task, fast(), device=device, out=out)
        both = [beft.load(out, device=each).predict_proba(texts) for each in ("cpu", "cuda")]
        assert torch.allclose(*(torch.as_tensor(each) for each in both), atol=1e-5)
        for other in ("cpu", "cuda"):
            found = tmp_path / f"{device}-{other}.jsonl"
            command = ["predict", out, "--data", rows, "--device", other, "--out", found]
            subprocess.run([sys.executable, "-m", "beft", *map(str, command)], check=True)
            lines = found.read_text(encoding="utf-8").splitlines()
            assert len(lines) == len(texts)
            assert json.loads(lines[0])
