"""What `import rhofast` promises."""

import subprocess
import sys

import pytest

import rhofast


@pytest.mark.parametrize("name", rhofast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert callable(getattr(rhofast, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        rhofast.nope  # noqa: B018


def test_importing_costs_neither_torch_nor_dali() -> None:
    code = "import sys, rhofast; print([name for name in ('torch', 'nvidia.dali', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
