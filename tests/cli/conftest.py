"""Commands called in this process, and a folder that `beft train` wrote once."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bases import bert, llama
from beft.cli import main
from beft.report import plots
from toys import write_csv

__all__ = ["bert", "llama"]


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Done]


def call(*arguments: object) -> int:
    """Run `beft` with arguments, give its exit code."""
    before, sys.argv = sys.argv, ["beft", *map(str, arguments)]
    try:
        main.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `beft` with arguments; its exit code and what it printed."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = call(*arguments)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)


def fast_options(base: Path, out: Path) -> list[object]:
    """Options of a run that takes a fraction of a second."""
    return ["-m", base, "-o", out, "--epochs", 2, "--batch-size", 8, "--max-length", 32, "--dtype", "fp32"]


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy rows: the columns text and label."""
    return write_csv(tmp_path_factory.mktemp("data") / "toy.csv")


@pytest.fixture(scope="session")
def adapter(bert: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `beft train` wrote; for reading only."""
    out = tmp_path_factory.mktemp("adapter") / "out"
    assert call("train", *fast_options(bert, out), "--data", toy_csv, "--text", "text", "--label", "label", "-q") == 0
    return out
