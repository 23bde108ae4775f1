"""On real data with a real model: a hundred rows tell good films from bad. And what theory says of b_k."""

from pathlib import Path

import numpy as np

import beft
import real
from toys import fast, toy_task
from training.common import learn


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


def test_tuning_the_key_bias_is_tuning_the_head_alone(bert: Path) -> None:
    """Under absolute positions a key bias cancels in softmax, seed by seed; a value bias does not (fp32, eps 1e-6)."""
    runs = {terms: learn(bert, toy_task(), fast(terms=terms, epochs=3)) for terms in ("key", "none", "value")}
    scores = {terms: np.asarray(run.probabilities["evaluation"]) for terms, run in runs.items()}
    assert np.abs(scores["key"] - scores["none"]).max() < 1e-5
    assert np.abs(scores["value"] - scores["none"]).max() > 1e-3
