"""How tests run the scripts of the package as their users do."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name: str, *arguments: object) -> None:
    """Run `python benchmarks/NAME.py ARGUMENTS`, in this process."""
    path = str(BENCHMARKS / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
