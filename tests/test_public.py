"""The public face: names resolve, and importing it is light."""

import os
import subprocess
import sys

import pytest

import beft


@pytest.mark.parametrize("name", [name for name in beft.__all__ if name != "__version__"])
def test_every_public_name_resolves_and_says_what_it_is(name: str) -> None:
    assert getattr(beft, name).__doc__


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = beft.no_such_name


def test_importing_beft_and_its_command_line_does_not_import_torch() -> None:
    code = "import sys, beft, beft.cli.main; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "turns"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")]
)
def test_threads_wait_awake_for_a_short_while_unless_the_environment_says_otherwise(
    given: dict[str, str], turns: str
) -> None:
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import beft, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, env={**usual, **given}, capture_output=True, text=True
    )
    assert found.stdout.strip() == turns
