"""Run by test_runner in a process of its own, which it kills: a study whose cells write a line when they begin."""

import sys
import time
from pathlib import Path

from beft.report.cells import CellRecord
from beft.studies.plan import Cell, make_plan
from beft.studies.runner import run_plan
from beft.studies.study import make_study
from beft.training.progress import Listener


def main(model: str, directory: Path, pause: float) -> None:
    """Run six cells, each of which takes so long."""

    def run(cell: Cell, work: Path, listener: Listener | None) -> CellRecord:
        with (directory / "began.txt").open("a") as log:
            log.write(f"{cell.method} {cell.seed}\n")
        time.sleep(pause)
        return cell.record(metrics={"accuracy": 0.5 + cell.seed / 10})

    values = {"models": [model], "tasks": ["sst2"], "methods": ["value", "query", "key"], "seeds": [0, 1],
              "train_size": 24}  # fmt: skip
    outcome = run_plan(make_plan(make_study(values, "toy", "toy"), dtype="fp32"), directory, run)
    print(outcome.ran, len([record for record in outcome.records if record.status == "done"]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
