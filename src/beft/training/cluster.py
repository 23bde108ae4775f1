"""Ray, reached or started: where its workers can stand, and how many threads or GPUs each may have."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.hub import resolve_model
from ..errors import BeftError, RecipeError, WorkersError
from ..launcher import place
from .machine import usable_device
from .memory import free_memory

LOCAL = "local"
PATIENCE = 5.0
"""Seconds in which a cluster's address must answer."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else every start warns of a change in later versions
    "RAY_worker_niceness": "0",  # the workers are what this machine is for
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of Ray's processes not to print: a worker's end is told by beft
}
"""Environment of Ray as it is imported and started."""
LIBRARIES = 2**30
"""Bytes of a worker beside the weights: Python, torch, and rows in training."""
COPIES = 2
"""Of the weights as they lie on disk: bf16 held as fp32."""


@dataclass(frozen=True)
class Layout:
    """How many workers there are, the threads and GPUs of each, their device, and how many share a machine's memory."""

    workers: int
    threads: int
    gpus: int
    device: str
    sharers: int


def described(layout: Layout) -> str:
    """The workers in words."""
    workers = f"{layout.workers} workers" if layout.workers > 1 else "one worker"
    threads = f"{layout.threads} threads" if layout.threads > 1 else "one thread"
    return f"{workers} of {'one GPU' if layout.gpus else threads}"


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, started on this machine ("local") or connected; as before afterwards.

    A connection that is there already is used and left alone.

    Raises:
        WorkersError: Ray is not installed, or nobody answers at the address.
        RecipeError: an address that is none, or this process is one of several of a launch.
    """
    if place().size > 1:
        raise RecipeError(
            "ray", expected="one process", found=f"{place().size} of a launcher", remedy="start it without the launcher"
        )
    ray = _import_ray()
    if ray.is_initialized():
        _check_same(ray, address)
        yield ray
        return
    if address != LOCAL:
        _check_answers(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, address)
        _put_back(before)
        yield ray
    finally:
        ray.shutdown()
        _put_back(before)


def arrange(ray: Any, address: str, jobs: int, device: str, model: str) -> Layout:
    """Where workers for so many jobs can stand.

    A GPU each where there are GPUs and the device may be one; else processors: as many workers as there are jobs,
    processors free and, on this machine, copies of the model that its memory holds; the threads are shared out.

    Raises:
        WorkersError: nothing is free.
        RecipeError: a device that is not at hand.
    """
    free, local = ray.available_resources(), address == LOCAL
    until = time.monotonic() + PATIENCE
    while not free.get("CPU") and time.monotonic() < until:  # what is free is reported with a delay
        time.sleep(0.1)
        free = ray.available_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if local:
        device = usable_device(device)
    gpus, cpus = int(free.get("GPU", 0)), int(free.get("CPU", 0))
    on_gpu = device.startswith("cuda") or (device == "auto" and any(node.get("GPU") for node in nodes))
    if (gpus if on_gpu else cpus) < 1:
        kind, owned = ("GPU", "GPUs") if on_gpu else ("CPU", "processors")
        total = int(sum(node.get(kind, 0) for node in nodes))
        raise WorkersError(
            f"Ray at {address}",
            expected=f"{owned} for workers",
            found=f"none free of {total}",
            remedy="wait for other jobs to end" if total else "start nodes that have some, or use another --device",
        )
    if on_gpu:
        return Layout(min(gpus, jobs, max(1, cpus)), 1, 1, "cuda", 1)
    workers = min(cpus, jobs)
    if device == "mps":
        workers = 1
    elif local:
        workers = min(workers, _copies_held(model))
    smallest = min(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)
    threads = max(1, min(cpus // workers, smallest))
    return Layout(workers, threads, 0, "cpu" if device == "auto" else device, math.ceil(workers / len(nodes)))


def _copies_held(model: str) -> int:
    """Copies of a model that the free memory holds, by its files; one at least."""
    try:
        folder = Path(resolve_model(model))
    except BeftError:
        return 1  # what is wrong is said when it is loaded
    size = sum(file.stat().st_size for file in folder.glob("*") if file.suffix in (".safetensors", ".bin", ".gguf"))
    return max(1, int(free_memory("cpu") // (COPIES * size + LIBRARIES)))


# ---- starting and reaching -------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    missing = {key: value for key, value in SETTINGS.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise WorkersError(
            "ray", expected="the package ray", found="none installed", remedy="pip install 'beft[ray]'"
        ) from error
    finally:
        for key in missing.keys() & {"RAY_DEDUP_LOGS_SKIP_REGEX"}:  # read at import; others of this process may want it
            del os.environ[key]


def _start(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        options |= {"num_cpus": processors(), "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorkersError(
            f"Ray at {address}",
            expected="a Ray that starts" if address == LOCAL else "a running cluster of this Ray and Python version",
            found=" ".join(str(error).split())[:300].rstrip("."),
            remedy="see its logs below /tmp/ray"
            if address == LOCAL
            else "start this machine's node (ray start ...); if it asks for a token, export RAY_AUTH_MODE=token",
        ) from error


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_answers(address: str) -> None:
    if address == "auto":
        return
    match = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d{1,5})", address)
    if match is None:
        raise RecipeError(f"ray {address!r}", expected="local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((match[1], int(match[2])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise WorkersError(
            f"Ray at {address}",
            expected="a cluster that answers",
            found=getattr(error, "strerror", None) or str(error) or "no answer",
            remedy="start one with `ray start --head --port PORT`, or use local",
        ) from error


def _check_same(ray: Any, address: str) -> None:
    own = ray.get_runtime_context().gcs_address
    if address not in (LOCAL, "auto", own):
        raise RecipeError(
            f"ray {address!r}",
            expected=f"the cluster {own} that this process is connected to",
            found="another",
            remedy="call ray.shutdown() first",
        )


def _put_back(handler: Any) -> None:
    """Ray's start takes SIGTERM for itself."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
