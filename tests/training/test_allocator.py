"""Freed memory stays with the process, unless the user has settings of their own."""

import json
import os
import subprocess
import sys

import pytest

from beft.training.allocator import SETTINGS

FAULTS = """
import json, resource, torch
from beft.training.allocator import give_back, keep_freed_memory

kept = keep_freed_memory() if {keep} else None

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()

def step():
    blocks = [torch.ones(6_000_000) for _ in range(3)]

for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
after, held = faults(), resident()
give_back()
print(json.dumps([kept, after - before, held - resident()]))
"""


def faults(keep: bool, **variables: str) -> tuple[bool | None, int, int]:
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**clean, **variables})
    kept, faulted, returned = json.loads(done.stdout)
    return kept, faulted, returned


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone is told")
def test_blocks_that_come_again_are_not_fetched_anew() -> None:
    plain, kept = faults(keep=False), faults(keep=True)
    assert plain[0] is None
    assert kept[0] is True
    assert plain[1] > 10_000, "72 MB a step come as fresh pages"
    assert kept[1] < plain[1] / 8
    assert kept[2] > 50e6, "and go back to the system when nothing needs them"


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_users_own_stand(name: str) -> None:
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "131072"
    assert faults(keep=True, **{name: value})[0] is False
