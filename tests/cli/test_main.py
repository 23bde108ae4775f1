"""Help comes at once and reads well; exit codes say what happened."""

import subprocess
import sys

import pytest
import typer

import beft
from beft.cli import main
from beft.cli.help import Group
from beft.errors import BeftError
from cli.conftest import Cli

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "sklearn", "scipy", "numpy"):
            raise ImportError(f"{name} is not for --help")
sys.meta_path.insert(0, Blocker())
from beft.cli.main import run
from beft.cli.main import COMMANDS
for command in ([], *([name] for name in COMMANDS)):
    sys.argv = ["beft", *command, "--help"]
    try:
        run()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
assert "torch" not in sys.modules
"""


def test_help_of_every_command_comes_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("demo", "inspect", "train", "evaluate", "predict", "--train-size", "--format", "--data-dir"):
        assert word in done.stdout


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_screen_of_a_command_has_no_noise(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = cli(command, "--help")
    assert done.code == 0
    assert "Usage: beft " + command in done.out
    assert done.out.count("--help") == 1
    for noise in ("<bool>", "list[str]", " range>", "[default: default]", "[default: auto]"):
        assert noise not in done.out, noise


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_option_of_a_command_says_what_it_is_in_a_sentence(command: str) -> None:
    found = typer.main.get_command(main.app)
    assert isinstance(found, Group)
    own = found.commands[command]
    for each in own.params:
        text = getattr(each, "help", None) or ""
        assert len(text.split()) > 1, each.name
        assert text.endswith((".", ")")), (each.name, text)


def test_the_calls_that_scripts_rely_on_have_their_options(cli: Cli) -> None:
    text = cli("train", "--help").out
    for name in (
        "--model", "--task", "--data-dir", "--data", "--text", "--label", "--terms", "--layers", "--head", "--regime",
        "--train-size", "--eval-size", "--max-length", "--recipe", "--lr", "--epochs", "--batch-size", "--dtype",
        "--seed", "--resume", "--overwrite", "--out", "--eval", "--no-eval", "--no-refit", "--class-weight", "--device",
        "--quiet", "--json", "--token-budget",
    ):  # fmt: skip
        assert name in text, name


def test_the_version(cli: Cli) -> None:
    assert cli("--version").out == f"beft {beft.__version__}\n"


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--lrr", "1"], ["train"], ["train", "--epochs", "many"]])
def test_a_command_line_that_is_none_ends_with_2(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments).code == 2


def test_an_error_is_one_line_whatever_it_holds(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise BeftError("a [/b] file\nof two lines", expected="x" * 300, found="[red]")

    monkeypatch.setattr(main, "app", fail)
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: a [/b] file of two lines: expected {'x' * 300}, found [red].\n"
