"""Where workers can stand: on clusters made of numbers; and addresses at which nobody is."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from beft.errors import RecipeError, WorkersError
from beft.training import cluster
from beft.training.cluster import Layout, arrange, connected


class Numbers:
    """A cluster of nodes with these resources, so much of which is free."""

    def __init__(self, *nodes: dict[str, float], free: dict[str, float] | None = None) -> None:
        self.all = list(nodes)
        self.free = free if free is not None else {k: sum(n.get(k, 0) for n in nodes) for k in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.all]

    def available_resources(self) -> dict[str, float]:
        return self.free


@pytest.mark.parametrize(
    ("nodes", "jobs", "device", "wanted"),
    [
        ([{"CPU": 2}], 5, "auto", Layout(2, 1, 0, "cpu", 2)),
        ([{"CPU": 2}], 1, "auto", Layout(1, 2, 0, "cpu", 1)),
        ([{"CPU": 16}], 4, "cpu", Layout(4, 4, 0, "cpu", 4)),
        ([{"CPU": 8}, {"CPU": 8}], 5, "auto", Layout(5, 3, 0, "cpu", 3)),
        ([{"CPU": 16}, {"CPU": 2}], 2, "auto", Layout(2, 2, 0, "cpu", 1)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], 9, "auto", Layout(4, 1, 1, "cuda", 1)),
        ([{"CPU": 8, "GPU": 2}], 9, "cpu", Layout(8, 1, 0, "cpu", 8)),
    ],
)
def test_workers_share_what_is_free(nodes: list[dict[str, float]], jobs: int, device: str, wanted: Layout) -> None:
    assert arrange(Numbers(*nodes), "10.0.0.1:6379", jobs, device, "no model") == wanted


def test_on_this_machine_memory_bounds_the_copies_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * 2**30)
    monkeypatch.setattr(cluster, "free_memory", lambda device: 22 * 2**30)
    assert arrange(Numbers({"CPU": 8}), "local", 8, "cpu", str(tmp_path)) == Layout(3, 2, 0, "cpu", 3)
    monkeypatch.setattr(cluster, "free_memory", lambda device: 2**30)
    assert arrange(Numbers({"CPU": 8}), "local", 8, "cpu", str(tmp_path)).workers == 1


@pytest.mark.parametrize(
    ("nodes", "free", "device", "message"),
    [
        ([{"CPU": 4}], {}, "cpu", "processors for workers, found none free of 4. Wait for other jobs to end"),
        ([{}], {}, "auto", "processors for workers, found none free of 0. Start nodes that have some"),
        ([{"CPU": 4}], {"CPU": 4}, "cuda", "GPUs for workers, found none free of 0"),
    ],
)
def test_no_room_for_one_worker(
    nodes: list[dict[str, float]], free: dict[str, float], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    with pytest.raises(WorkersError, match=message):
        arrange(Numbers(*nodes, free=free), "10.0.0.1:6379", 3, device, "no model")


def test_an_address_at_which_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for each in (address, f"ray://{address}"):
            with (
                pytest.raises(WorkersError, match=f"Ray at {each}: expected a cluster that answers, found .*refused"),
                connected(each),
            ):
                raise AssertionError("connected")


@pytest.mark.parametrize("address", ["", "locall", "10.0.0.1", "host:port", "10.0.0.1:6379/x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RecipeError, match=r"expected local, auto, HOST:PORT or ray://HOST:PORT"), connected(address):
        raise AssertionError("connected")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            WorkersError, match=r"ray: expected the package ray, found none installed. Pip install 'beft\[ray\]'"
        ),
        connected("local"),
    ):
        raise AssertionError("connected")


def test_among_the_processes_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match="expected one process, found 2 of a launcher"), connected("local"):
        raise AssertionError("connected")
