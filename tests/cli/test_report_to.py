"""`beft train --report-to`."""

import json
from pathlib import Path

import pytest

from cli.conftest import Cli, fast_options


def test_a_tracker_gets_the_run_and_its_final_scores(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    options = [*fast_options(bert, out), "--data", toy_csv, "--text", "text", "--label", "label", "--json"]
    done = cli("train", *options, "--report-to", "tensorboard")
    assert done.code == 0
    files = EventAccumulator(str(out / "trackers" / "1" / "beft"))
    files.Reload()
    assert {"select/loss", "select/lr", "select/dev_accuracy", "refit/loss"} <= set(files.Tags()["scalars"])
    (final,) = files.Scalars("evaluation/accuracy")
    assert final.value == pytest.approx(json.loads(done.out)["evaluation"]["accuracy"])


def test_an_unknown_tracker_is_one_line_before_anything_is_written(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [*fast_options(bert, out), "--data", toy_csv, "--text", "text", "--label", "label"]
    done = cli("train", *options, "--report-to", "wandbb")
    assert done.code == 2
    assert done.err.strip().splitlines()[-1].startswith("error: tracker 'wandbb'")
    assert "Did you mean 'wandb'?" in done.err
    assert not out.exists()
