"""`beft`: puts the commands together and turns errors into one line and exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from ..errors import BeftError, Interrupted
from ..extend import use
from ..training.signals import ctrl_c_remembered
from . import (
    compare,
    demo,
    evaluate,
    export,
    importance,
    inspect,
    learning_curve,
    merge,
    predict,
    show,
    study,
    train,
    tune,
)
from .help import Command, Group
from .launch import must_speak, side_by_side
from .screen import error_line

app = typer.Typer(
    name="beft",
    cls=Group,
    help="Adapt a frozen language model by learning one small bias vector per attention layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "inspect": inspect.inspect,
    "train": train.train,
    "tune": tune.tune,
    "learning-curve": learning_curve.learning_curve,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "show": show.show,
    "importance": importance.importance,
    "compare": compare.compare,
    "study": study.study,
    "merge": merge.merge,
    "unmerge": merge.unmerge,
    "export": export.export,
}
for name, call in COMMANDS.items():
    app.command(name, cls=Command)(call)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"beft {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--use", help="Load a file of your own first: FILE.py, or FILE.py:NAME; may be given again.", metavar="FILE"
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Adapt a frozen language model by learning one small bias vector per attention layer."""
    for source in own or ():
        use(source)


def run() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in the input, 128 + n stopped by signal n."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # where it is installed, it tells of optional kernels
    try:
        with ctrl_c_remembered(), side_by_side():
            app(prog_name="beft")
    except Interrupted as stop:
        if must_speak(stop):
            error_line(str(stop))
        sys.exit(128 + stop.signal)
    except BeftError as error:
        if must_speak(error):
            error_line(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        error_line("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    run()
