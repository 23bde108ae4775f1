"""`beft inspect` shows a model's sites with their proof, and what an adapter holds."""

import json
from pathlib import Path

import pytest

from cli.conftest import Cli, call, fast_options
from tiny import build
from toys import save_base


def test_a_model(cli: Cli, bert: Path) -> None:
    done = cli("inspect", bert)
    assert done.code == 0
    for words in ("BertModel", "b_v", "attention.self.value", "proven", "inert"):
        assert words in done.err


def test_a_model_as_json(cli: Cli, llama: Path) -> None:
    done = cli("inspect", llama, "--terms", "value", "--json")
    assert done.err == ""
    record = json.loads(done.out)
    assert [site["layer"] for site in record["sites"]] == [0, 1]
    assert all(site["proven"] for site in record["sites"])
    assert record["terms"]["value"] == 2 * 16  # two heads of keys and values, eight features each


def test_an_adapter(cli: Cli, adapter: Path) -> None:
    done = cli("inspect", adapter)
    assert done.code == 0
    head = "head: one linear layer on the mean state"
    for words in ("labels: blue, green, red", head, "encoder.layer.1.attention.self.value", "evaluation: accuracy"):
        assert words in done.err
    record = json.loads(cli("inspect", adapter, "--json").out)
    assert len(record["vectors"]) == 2
    assert record["metrics"]["trainable_parameters"] == 163


@pytest.mark.parametrize(("family", "site"), [("vit", "b_v"), ("bert", "attention.self.value")])
def test_a_model_without_a_tokenizer(cli: Cli, tmp_path: Path, family: str, site: str) -> None:
    build(family).save_pretrained(tmp_path)
    done = cli("inspect", tmp_path, "--device", "cpu")
    assert done.code == 0, done.err
    assert site in done.err
    assert "proven" in done.err
    record = json.loads(cli("inspect", tmp_path, "--json").out)
    assert all(each["proven"] for each in record["sites"] if each["term"] == "value")


def test_quiet_leaves_the_exit_status(cli: Cli, bert: Path, adapter: Path, tmp_path: Path) -> None:
    for target in (bert, adapter):
        done = cli("inspect", target, "--quiet")
        assert (done.code, done.out, done.err) == (0, "", "")
    assert cli("inspect", tmp_path / "nothing", "-q").code == 2
    assert "device 'tpu'" in cli("inspect", bert, "--device", "tpu").err


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, whose projections are no `nn.Linear`, with its language-model head."""
    return save_base(tmp_path_factory.mktemp("gpt2") / "tiny-gpt2", "gpt2", head="lm", special=False)


CHOICE = ["--candidates", "red= red,green= green,blue= blue", "--label", "label"]


@pytest.mark.parametrize(
    ("asked", "does"),
    [(CHOICE, "chooses among candidates: red, green, blue"), (["--answer", "label"], "writes answers\n")],
)
def test_an_adapter_that_answers_prompts(
    cli: Cli, gpt2: Path, toy_csv: Path, tmp_path: Path, asked: list[str], does: str
) -> None:
    out = tmp_path / "out"
    own = ["--data", toy_csv, "--template", "{text} !", *asked, "--max-length", 64, "-q"]
    assert call("train", *fast_options(gpt2, out), *own) == 0
    assert f"task: toy from the template '{{text}} !'; {does}" in cli("inspect", out).err
    manifest = json.loads((out / "beft.json").read_text())
    for benchmark, source in ((True, "a benchmark's prompts"), (False, "prompts of its own")):
        manifest["task"] |= {"name": "copa", "asked": None, "labels": None, "benchmark": benchmark}
        (out / "beft.json").write_text(json.dumps(manifest))
        assert f"task: copa from {source}; {does.partition(':')[0]}" in cli("inspect", out).err


def test_one_line_says_that_stock_peft_will_refuse_it(
    cli: Cli, adapter: Path, gpt2: Path, toy_csv: Path, tmp_path: Path
) -> None:
    why = "transformer.h.0.attn.c_attn is a Conv1D, and PEFT's BEFT takes nn.Linear only"
    out = tmp_path / "out"
    done = cli("train", *fast_options(gpt2, out), "--data", toy_csv, "--template", "{text} !", *CHOICE)
    assert done.err.count(f"note: stock PEFT will refuse this adapter: {why}\n") == 1
    assert f"Stock PEFT will refuse it: {why}.\n" in (out / "README.md").read_text()
    assert f"note: stock PEFT will refuse it: {why}\n" in cli("inspect", out).err
    assert json.loads(cli("inspect", out, "--json").out)["peft_refuses"] == why
    assert "refuse" not in cli("inspect", adapter).err + (adapter / "README.md").read_text()
