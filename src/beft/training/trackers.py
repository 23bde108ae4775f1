"""Experiment trackers (TensorBoard, Weights & Biases, ...) that follow a run, through accelerate's own classes.

`tracking` gives a `Listener`: the loss of every step, and of every epoch the learning rate and the dev scores, with the
run's recipe as its configuration.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RecipeError, nearest
from .progress import Listener

PROJECT = "beft"
FOLDER = "trackers"
"""Folder inside a run's folder, for trackers that write files."""
TRAINING = ("select", "refit")
PACKAGES = {"comet_ml": "comet-ml"}
"""Names under which pip knows a tracker's package, where they differ."""
RUN_NAMES = {"wandb": "name", "mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name"}
"""The option that names a run inside the project; other trackers go by the project alone."""


def check_trackers(names: str | Sequence[str] | None) -> list[str]:
    """The trackers of "tensorboard,wandb" or of a list, each once; "all" is every installed one, None is none.

    Raises:
        RecipeError: a name that accelerate does not know, or a tracker (or accelerate itself) that is not installed.
    """
    given = names.split(",") if isinstance(names, str) else list(names or ())
    wanted = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    if not wanted:
        return []
    if importlib.util.find_spec("accelerate") is None:
        raise _missing(wanted[0], "accelerate")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    installed = [str(each) for each in get_available_trackers()]
    if "all" in wanted:
        if not installed:
            raise _missing("all", "tensorboard")
        return installed
    built_in = {str(each) for each in LoggerType}
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(
                f"tracker {name!r}",
                expected="one that accelerate knows, or all",
                found="none of that name",
                remedy=nearest(name, [*LOGGER_TYPE_TO_CLASS, "all"]),
            )
        if name in built_in and name not in installed:  # others were registered by hand
            raise _missing(name, PACKAGES.get(name, name))
    return wanted


def _missing(name: str, package: str) -> RecipeError:
    return RecipeError(
        f"tracker {name!r}", expected=f"{package} installed", found="none", remedy=f"run pip install {package}"
    )


class Tracking(Listener):
    """Passes every event on to another listener and logs those of training. Made by `tracking`.

    Steps are counted over both phases. Trackers start with the first phase of training, when the run has taken its
    folder. One that fails later is left out from then on, with a note: the run matters more.
    """

    def __init__(
        self, names: Sequence[str], directory: Path, config: Mapping[str, Any], listener: Listener | None = None
    ) -> None:
        self.names, self.directory, self.config = list(names), directory, config
        self.listener = listener or Listener()
        self.trackers: list[Any] | None = None
        self.phase, self.steps, self.goes_on = "", 0, False

    def resumed(self, steps: int) -> None:
        """The run goes on after so many steps of training."""
        self.steps, self.goes_on = steps, True

    def stage(self, name: str, steps: int) -> None:
        """Begin a stage; the first of training starts the trackers."""
        if self.trackers is None and name in TRAINING:
            self._start()
        self.phase = name
        self.listener.stage(name, steps)

    def step(self, loss: float | None, examples: int) -> None:
        """Log the loss of a step of training."""
        self.listener.step(loss, examples)
        if loss is not None and self.phase in TRAINING:
            self.steps += 1
            self.log({f"{self.phase}/loss": loss})

    def epoch(self, row: dict[str, Any]) -> None:
        """Log an epoch's numbers: its number, learning rate, mean training loss and dev scores."""
        self.listener.epoch(row)
        phase = row.get("phase", self.phase)
        self.log({f"{phase}/{key}": value for key, value in row.items() if key not in ("phase", "train_seconds")})

    def note(self, text: str) -> None:
        """Pass it on."""
        self.listener.note(text)

    def scores(self, scores: Mapping[str, Any]) -> None:
        """Log final scores as `evaluation/<metric>`."""
        self.log({f"evaluation/{name}": value for name, value in scores.items()})

    def log(self, values: Mapping[str, Any]) -> None:
        """Log numbers at the step at hand; whatever is no number is left out."""
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
        for tracker in list(self.trackers or ()):
            try:
                tracker.log(numbers, step=self.steps)
            except Exception as error:
                self._drop(tracker, error)

    def finish(self) -> None:
        """Close the trackers. A second call does nothing."""
        for tracker in list(self.trackers or ()):
            try:
                tracker.finish()
            except Exception as error:
                self._drop(tracker, error)
        self.trackers = []

    def _start(self) -> None:
        self.trackers = []
        if not self.names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it which process they are in
        title, folder = self.directory.resolve().name or PROJECT, self._folder()
        for name in self.names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            options: dict[str, Any] = {RUN_NAMES[name]: title} if name in RUN_NAMES else {}
            try:
                if kind.requires_logging_directory:
                    folder.mkdir(parents=True, exist_ok=True)
                    options["logging_dir"] = str(folder)
                tracker = kind(PROJECT, **options)
                tracker.start()
                self.trackers.append(tracker)
                tracker.store_init_configuration(flat(self.config))
            except Exception as error:
                raise RecipeError(
                    f"tracker {name!r}",
                    expected="one that starts",
                    found=_first_line(error),
                    remedy="set it up (log in, or its own offline mode), or leave it out",
                ) from error

    def _folder(self) -> Path:
        """`trackers/1` in the run's folder; a run begun anew there takes the next number, a resumed one the last."""
        parent = self.directory / FOLDER
        last = max((int(each.name) for each in parent.glob("*") if each.name.isdigit()), default=0)
        return parent / str(max(1, last if self.goes_on else last + 1))

    def _drop(self, tracker: Any, error: Exception) -> None:
        assert self.trackers is not None
        self.trackers.remove(tracker)
        self.note(f"tracker {tracker.name!r} failed and is left out from here on: {_first_line(error)}")


@contextmanager
def tracking(
    names: str | Sequence[str] | None,
    directory: str | Path,
    config: Mapping[str, Any],
    listener: Listener | None = None,
) -> Iterator[Tracking]:
    """A listener that passes events on to `listener` and logs them to trackers, which are closed at the end.

    Args:
        names: see `check_trackers`; with none of them, events are passed on and that is all.
        directory: the run's folder. Its name is the run's; trackers that write files do so in its folder `trackers`.
        config: the run's settings, such as `recipe.to_dict()`.

    Raises:
        RecipeError: see `check_trackers`; and when the run begins, a tracker that cannot be started.
    """
    follower = Tracking(check_trackers(names), Path(directory), config, listener)
    try:
        yield follower
    finally:
        follower.finish()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A configuration as every tracker takes it: nested names joined by dots, what is no number or text as text."""
    result: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return result


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
