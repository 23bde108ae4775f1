"""Freed memory stays with the process, unless the user has settings of their own."""

import json
import os
import subprocess
import sys

import pytest

from beft.training.allocator import SETTINGS

SCRIPT = """
import json, resource, torch
from beft.training.allocator import give_back, keep_freed_memory

kept = keep_freed_memory() if {keep} else None

def pages():
    with open("/proc/self/statm") as handle:
        return [int(each) * resource.getpagesize() for each in handle.read().split()[:2]]

blocks = [torch.ones(6_000_000) for _ in range(3)]
full, _ = pages()
del blocks
freed, held = pages()
give_back()
print(json.dumps([kept, full - freed, held - pages()[1]]))
"""


def outcome(keep: bool, **variables: str) -> tuple[bool | None, int, int]:
    """Whether freed memory is kept; bytes unmapped when 72 MB were freed, and bytes that `give_back` returned."""
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    command = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**clean, **variables})
    kept, at_once, later = json.loads(done.stdout)
    return kept, at_once, later


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone is told")
def test_freed_blocks_stay_until_they_are_given_back() -> None:
    plain, kept = outcome(keep=False), outcome(keep=True)
    assert plain[0] is None
    assert plain[1] > 70e6
    assert plain[2] < 1e6
    assert kept[0] is True
    assert kept[1] < 1e6
    assert kept[2] > 50e6


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_users_own_stand(name: str) -> None:
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "131072"
    assert outcome(keep=True, **{name: value})[0] is False
