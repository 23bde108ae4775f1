"""Options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAIN, DATA, TASK = "Model and output", "Your own rows", "Benchmark task"
RECIPE, GRID, MACHINE = "Recipe", "Many runs side by side", "Machine and screen"

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Your rows: a CSV, TSV, JSON lines or Parquet file, or a Hub data set, OWNER/NAME[:CONFIG][@SPLIT] (its "
        "split train to learn from, validation to judge on).",
        rich_help_panel=DATA,
    ),
]
Text = Annotated[
    list[str] | None, typer.Option("--text", help="Text column; give it twice for pairs.", rich_help_panel=DATA)
]
Label = Annotated[
    str | None,
    typer.Option("--label", help="Label column: words, integers, or numbers to predict.", rich_help_panel=DATA),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="A benchmark: sst2 rte qqp qnli mnli cola mrpc stsb cb wic wnli; for language models sst2 rte cb boolq "
        "wsc wic multirc copa record squad drop; or your own, FILE.py:NAME.",
        rich_help_panel=TASK,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of benchmark data; else $BEFT_DATA, else the Hub.", rich_help_panel=TASK),
]
EvalSize = Annotated[
    int | None, typer.Option("--eval-size", min=1, help="Use only the first N evaluation rows.", rich_help_panel=DATA)
]
TrainSize = Annotated[
    str | None, typer.Option("--train-size", help="Training rows to use: N or all.", rich_help_panel=DATA)
]
Regime = Annotated[
    str | None,
    typer.Option("--regime", help="The paper's training size: low (default), medium or high.", rich_help_panel=TASK),
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="Tokens of a text at most.", rich_help_panel=RECIPE)
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="default: beft's own settings; paper: the paper's, and its choice of the epoch on the evaluation rows.",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="linear: one layer on pooled states; model: the architecture's own.",
        rich_help_panel=RECIPE,
    ),
]
Pairs = Annotated[
    str | None,
    typer.Option(
        "--pairs",
        help="How a linear head reads two texts: joint, as one input; apart, each by itself, compared; auto: apart "
        "on a sentence-transformers model (default).",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
HeadStart = Annotated[
    str | None,
    typer.Option(
        "--head-start",
        help="Where a linear head starts: zero, means (of the classes' frozen states), regression (on these), or auto: "
        "regression with texts read apart, means where classes are many and rows few (default).",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
HeadPenalty = Annotated[
    str | None,
    typer.Option(
        "--head-penalty",
        help="L2 penalty on a linear head: none, regression (that of the logistic regression on frozen states), or "
        "auto: regression with texts read apart (default).",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval",
        help="Evaluation rows, given as --data is; without it a stratified fifth is held out.",
        rich_help_panel=DATA,
    ),
]
Regression = Annotated[
    bool,
    typer.Option("--regression", help="Labels are numbers to predict, even if all are whole.", rich_help_panel=DATA),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="Rows of an optimiser step, however many forwards it takes.", rich_help_panel=RECIPE
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        help="GiB that the runs may take beside the model (default: half of what is free).",
        rich_help_panel=GRID,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        help="Hours that all of it may take; what does not fit is listed as missing.",
        rich_help_panel=MAIN,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run and how long, then stop.", rich_help_panel=MAIN)
]
OtherVersions = Annotated[
    bool,
    typer.Option(
        "--other-versions", help="Count cells that another version of the code made, too.", rich_help_panel=MAIN
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the rows at most.", rich_help_panel=RECIPE)]
ClassWeight = Annotated[
    str | None,
    typer.Option("--class-weight", help="balanced: rare classes count as much.", rich_help_panel=RECIPE),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.", rich_help_panel=MAIN)]
Device = Annotated[
    str,
    typer.Option("--device", help="auto (default), cpu, cuda or mps.", show_default=False, rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Precision of the frozen base: auto (default), bf16, fp16 or fp32.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        "--token-budget",
        min=1,
        help="Tokens of a forward at most: lower it if memory is short. In training, a step of --batch-size rows is "
        "cut into micro-batches and their gradients are summed: results stay the same.",
        rich_help_panel=MACHINE,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=MACHINE)]
Json = Annotated[
    bool, typer.Option("--json", help="Print results as JSON on standard output.", rich_help_panel=MACHINE)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=MACHINE)
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="Hold the frozen base in 8bit or 4bit (by bitsandbytes), or none. Predicting: as trained.",
        rich_help_panel=MACHINE,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help='Spread the base over devices: auto, or JSON such as {"layers.0": 0, "": "cpu"} ("disk": read when run).',
        rich_help_panel=MACHINE,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Spread the work over Ray's workers: local (this machine's processors), or a cluster's HOST:PORT.",
        rich_help_panel=MACHINE,
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        help="Spread the base over the processes that a launcher (torchrun, accelerate) started, a piece each.",
        rich_help_panel=MACHINE,
    ),
]
OtherModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Another place of the same base model.", rich_help_panel=MACHINE),
]
