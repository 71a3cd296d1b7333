"""The benchmarks, as they find each other when they are started as scripts."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_named() -> Iterator[Callable[[str], Any]]:
    """Return a function that imports a benchmark; none of them stays imported."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in {file.stem for file in FOLDER.glob("*.py")} & sys.modules.keys():
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]
