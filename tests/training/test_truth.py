"""On real data with a real model: a hundred rows are enough to tell good films from bad."""

from pathlib import Path

import beft
import real


def test_a_hundred_rows_of_sst2_beat_the_majority_clearly(tmp_path: Path) -> None:
    task = beft.benchmark_task("sst2", real.data(), size=100, eval_size=200)
    recipe = beft.Recipe(epochs=8, max_length=40, selection="none")
    result = beft.train(str(real.model("minilm-l6-uncased")), task, recipe, tmp_path / "out")
    majority = result.metrics["baselines"]["majority"]["accuracy"]
    assert 0.45 < majority < 0.56
    assert result.evaluation["accuracy"] > majority + 0.12  # three and a half standard errors of 200 rows
    assert sum(result.metrics["adapter_bytes"].values()) < 20_000
    predictor = beft.load(tmp_path / "out")
    assert predictor.predict(["a wonderful, moving film", "a dull and tedious mess"]) == ["positive", "negative"]
