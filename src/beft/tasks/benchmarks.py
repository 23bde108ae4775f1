"""Data: the paper's benchmark tasks for encoders, as the Hub names their fields and codes their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """Where a task lies and how it reads.

    `low`, `medium` and `high` are training rows of the paper's regimes (None: the regime is not defined; "all" as 0).
    `validations` maps our name of an evaluation split to the split's name in files and on the Hub.
    """

    name: str
    hub: tuple[str, str]
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    low: int | None
    medium: int | None = None
    high: int | None = None
    glue_file: str = ""
    validations: Mapping[str, str] | None = None
    word_field: str = ""

    @property
    def splits(self) -> Mapping[str, str]:
        """Evaluation splits."""
        return self.validations or {"validation": "validation"}


_ENTAILS = ("entailment", "not_entailment")
_MNLI = {"validation_matched": "validation_matched", "validation_mismatched": "validation_mismatched"}

BENCHMARKS: dict[str, Benchmark] = {
    task.name: task
    for task in (
        Benchmark(
            "sst2", ("glue", "sst2"), ("sentence",), ("negative", "positive"), ("accuracy",), 1000, 5000, 11000, "SST-2"
        ),
        Benchmark(
            "cola",
            ("glue", "cola"),
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews", "accuracy"),
            1710,
            3420,
            4275,
            "CoLA",
        ),
        Benchmark(
            "mrpc",
            ("glue", "mrpc"),
            ("sentence1", "sentence2"),
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            367,
            1191,
            1835,
            "MRPC",
        ),
        Benchmark(
            "stsb",
            ("glue", "stsb"),
            ("sentence1", "sentence2"),
            None,
            ("spearman", "pearson"),
            287,
            1150,
            2300,
            "STS-B",
        ),
        Benchmark(
            "qqp",
            ("glue", "qqp"),
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            1000,
            5000,
            9000,
            "QQP",
        ),
        Benchmark(
            "qnli", ("glue", "qnli"), ("question", "sentence"), _ENTAILS, ("accuracy",), 1000, 5000, 9000, "QNLI"
        ),
        Benchmark("rte", ("glue", "rte"), ("sentence1", "sentence2"), _ENTAILS, ("accuracy",), 300, 900, 1200, "RTE"),
        Benchmark(
            "mnli",
            ("glue", "mnli"),
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            1000,
            5000,
            9000,
            "MNLI-m",
            _MNLI,
        ),
        Benchmark(
            "wnli",
            ("glue", "wnli"),
            ("sentence1", "sentence2"),
            ("not_entailment", "entailment"),
            ("accuracy",),
            0,
            glue_file="WNLI",
        ),
        Benchmark(
            "cb",
            ("super_glue", "cb"),
            ("premise", "hypothesis"),
            ("entailment", "contradiction", "neutral"),
            ("f1_macro", "accuracy"),
            0,
        ),
        Benchmark(
            "wic",
            ("super_glue", "wic"),
            ("sentence1", "sentence2"),
            ("false", "true"),
            ("accuracy",),
            1000,
            word_field="word",
        ),
    )
}
"""Sizes of wnli and cb (all rows) and wic are this project's choice: the paper's code has none."""

REGIMES = ("low", "medium", "high")
