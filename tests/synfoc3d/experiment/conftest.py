"""What tests of disturbed experiments share."""

from pathlib import Path
from typing import Any

import pytest

from synfoc3d.experiment.execution import run_experiment

from .fakes import InThisProcess
from .two_trainings import in_this_process, make


@pytest.fixture(scope="session")
def undisturbed(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the experiment as one process runs it."""
    output = tmp_path_factory.mktemp("undisturbed")
    with project.active():
        experiment = make(output)
        run_experiment(experiment, InThisProcess(experiment, in_this_process), run=in_this_process)
    return output
