"""`beft train --method`: help, results on the screen, folders that evaluate and predict, mistakes in one line."""

import json
from pathlib import Path

import pytest

from beft.methods.registry import BUILT_IN
from cli.conftest import Cli, fast_options


def options(base: Path, out: Path, data: Path, *more: object) -> list[object]:
    return [*fast_options(base, out), "--data", data, "--text", "text", "--label", "label", *more]


def test_help_names_every_method_and_its_options(cli: Cli) -> None:
    done = cli("train", "--method", "lora", "--help")
    assert done.code == 0
    words = done.out.replace("│", " ").split()
    plain = {word.strip(".,:()") for word in words}
    assert set(BUILT_IN) <= plain
    assert {"--method", "--rank", "--alpha", "--mask-size", "--virtual-tokens"} <= plain


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", ["--rank", 2, "--alpha", 4]),
        ("random-mask", ["--mask-size", 300]),
        ("prefix", ["--virtual-tokens", 2]),
        ("full", ["--head", "model"]),
        ("bias-vera1", ["--terms", "query"]),
        ("probe", []),
    ],
)
def test_a_method_is_trained_evaluated_and_predicts(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, method: str, more: list[object]
) -> None:
    out = tmp_path / "out"
    done = cli("train", *options(bert, out, toy_csv, "--method", method, *more))
    assert done.code == 0, done.err
    assert f"beft, {method}" in done.err
    assert "trained values" in done.err
    record = json.loads((out / "run.json").read_text())
    assert record["recipe"]["method"] == method
    for name, value in zip(more[::2], more[1::2], strict=True):
        assert record["recipe"][str(name).removeprefix("--").replace("-", "_")] == value
    assert f"the method {method}" in (out / "README.md").read_text()
    done = cli("evaluate", out, "--data", toy_csv, "--json")
    assert done.code == 0, done.err
    assert cli("predict", out, "--data", toy_csv, "--out", tmp_path / "p.jsonl", "-q").code == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 36


def test_mistakes_are_one_line(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    for more, words in (
        (["--method", "loraa"], "Did you mean 'lora'?"),
        (["--method", "value"], "--method bias --terms value"),
        (["--method", "full", "--rank", 3], "method full: expected no option of its own, found --rank"),
        (["--rank", 3], "method bias: expected --terms, --layers, found --rank"),
        (["--method", "probe", "--head", "model"], "expected --head linear, found --head model"),
        (["--method", "lm-head"], "expected prompts"),
    ):
        done = cli("train", *options(bert, tmp_path / "out", toy_csv, *more))
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_merge_and_export_say_which_folders_they_take(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("train", *options(bert, out, toy_csv, "--method", "layernorm", "-q")).code == 0
    done = cli("merge", out, "--out", tmp_path / "merged")
    assert done.code == 2
    assert "expected a bias adapter, found one of the method layernorm" in done.err
