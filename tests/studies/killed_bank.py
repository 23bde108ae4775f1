"""Run by test_together in a process of its own, which it kills: a study of one bank, whose runs end at a slow pace."""

import sys
import time
from pathlib import Path
from typing import Any

from beft.studies.answering import Watcher
from beft.studies.execute import run_cell
from beft.studies.plan import make_plan
from beft.studies.runner import Outcome, run_plan
from beft.studies.study import make_study
from beft.studies.together import run_together
from beft.training.progress import BankListener, Listener


class Slow(BankListener, Watcher):
    """Waits a little at every step of a run, and keeps a log of runs that end."""

    def __init__(self, log: Path, pause: float) -> None:
        self.log, self.pause = log, pause

    def group(self, cells: Any) -> BankListener:
        """Itself, for every bank."""
        return self

    def begin(self, *given: Any) -> None:
        """Of a study or of a bank: neither matters here."""

    def of(self, name: str) -> Listener:
        """One that waits."""
        pause = self.pause

        class Waiting(Listener):
            def step(self, loss: float | None, examples: int) -> None:
                time.sleep(pause)

        return Waiting()

    def ended(self, name: str, scores: Any, error: Exception | None) -> None:
        """A line of the log."""
        with self.log.open("a") as log:
            log.write(name + "\n")
        time.sleep(10 * self.pause)


def main(model: str, directory: Path, pause: float) -> Outcome:
    """Run four cells of one bank."""
    values = {"models": [model], "tasks": ["sst2"], "methods": ["value", "head"], "seeds": [0, 1], "train_size": 24,
              "changes": {"epochs": 2, "max_length": 32}, "grid": {"value": [1e-3, 1e-2]}}  # fmt: skip
    return run_plan(
        make_plan(make_study(values, "toy", "toy"), "cpu", "fp32"),
        directory,
        run_cell,
        run_together,
        watcher=Slow(directory / "ended.txt", pause),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
