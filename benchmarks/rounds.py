"""Measurements that take turns: each in a process of its own, round after round, kept at once, not repeated.

On a GPU, where a process's start costs more than what it measures, `--one-process` makes them all in this one: the
first round warms up, and of three or more the median leaves it out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Results = dict[str, list[dict[str, Any]]]
Measure = Callable[[dict[str, Any]], dict[str, Any]]


def read_options(parser: ArgumentParser, measure: Measure) -> Namespace:
    """The options of a benchmark, `--rounds` and `--out` added. A process of `take_turns` answers here, and ends.

    `here` is what `take_turns` is to be given: `measure`, if all is measured in this process.
    """
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-process", action="store_true", help="for a GPU: no process for each measurement")
    parser.add_argument("--child", help=SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(json.loads(options.child))))
        raise SystemExit
    options.here = measure if options.one_process else None
    return options


def take_turns(
    script: str, requests: Mapping[str, dict[str, Any]], rounds: int, out: Path | None, here: Measure | None = None
) -> Results:
    """For each key the results of its rounds: what `script --child REQUEST` prints last, as JSON, or `here` gives.

    What an interrupted call left in the file `out` counts, and more rounds than it has are added.
    """
    results: Results = {}
    if out and out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))["results"]
    wide = max(map(len, requests), default=0)
    for number in range(rounds):
        for key, request in requests.items():
            if len(results.get(key, [])) > number:
                continue
            result = _measured(here, request) if here else _of_a_process(script, request)
            results.setdefault(key, []).append(result)
            brief = {name: value for name, value in result.items() if not isinstance(value, list)}
            print(f"round {number + 1} {key:{wide}} {brief}", file=sys.stderr, flush=True)
            if out:
                write_record(out, results)
    return results


def _of_a_process(script: str, request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, script, "--child", json.dumps(request)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.strip().splitlines()[-1])


def _measured(measure: Measure, request: dict[str, Any]) -> dict[str, Any]:
    """A measurement in this process, the GPU's memory empty and its peak begun anew."""
    import torch

    from beft.training.memory import release

    release()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return measure(request)


def write_record(out: Path, results: Results, **more: Any) -> None:
    """Keep the results, and what else belongs to them, in the file `out`."""
    out.write_text(json.dumps({"results": results, **more}, indent=1) + "\n", encoding="utf-8")
