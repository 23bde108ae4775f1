"""The public face: names resolve, and importing it is light."""

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
