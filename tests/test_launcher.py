"""What torchrun, accelerate and MPI say of a process, each in its own variables."""

import subprocess
import sys

import pytest

from beft.cli.launch import speaks
from beft.errors import RanksError
from beft.launcher import NAMES, Place, asks_to_shard, check_meeting, place


@pytest.fixture(autouse=True)
def _nobody_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for names in NAMES:
        for name in names:
            monkeypatch.delenv(name, raising=False)


def say(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_a_process_is_alone() -> None:
    assert place() == Place(0, 1, 0, 1)
    assert speaks()
    check_meeting()


@pytest.mark.parametrize("names", NAMES, ids=["torchrun", "open-mpi", "mpich", "mvapich"])
def test_each_launcher_is_heard(monkeypatch: pytest.MonkeyPatch, names: tuple[str, str, str, str]) -> None:
    say(monkeypatch, **dict(zip(names, ("5", "8", "1", "4"), strict=True)))
    assert place() == Place(5, 8, 1, 4)
    assert not speaks()


def test_a_launch_of_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert place() == Place()
    check_meeting()


def test_processes_without_a_meeting_place_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2", MASTER_PORT="29500")
    with pytest.raises(RanksError, match=r"2 processes: expected an address .* found no MASTER_ADDR"):
        check_meeting()
    say(monkeypatch, MASTER_ADDR="127.0.0.1")
    check_meeting()


def test_one_process_where_several_were_asked_for_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    with pytest.raises(RanksError, match="found one, for without MPI it starts no others"):
        check_meeting()


def test_sharding_is_asked_for_by_several_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, ACCELERATE_USE_FSDP="true")
    assert not asks_to_shard()
    say(monkeypatch, RANK="1", WORLD_SIZE="2")
    assert asks_to_shard()
    say(monkeypatch, ACCELERATE_USE_FSDP="false")
    assert not asks_to_shard()


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "beft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("beft ")
