"""The method that docs/how-to/add-a-method.md shows trains, from a folder outside of the package."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"
TRAINER = "nnUNetTrainerTwoViews"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's first block of code, saved where the page says."""
    code = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    folder = tmp_path_factory.mktemp("mine")
    (folder / f"{TRAINER}.py").write_text(code)
    return folder


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_method_of_the_page_trains_for_an_epoch(project, folder, configuration):
    with project.active("add_a_method") as patch:
        patch.setenv("nnUNet_extTrainer", str(folder))
        trainer = project.trainer(TRAINER, configuration, epochs=1, method={"weight": 2, "noise": 0.5})
        trainer.disable_checkpointing = True
        trainer.run_training()
    assert trainer.settings.method.noise == 0.5
    assert trainer.curves.rows[0]["loss_views"] > 0
    assert ("consistency", ("loss_views",)) in [panel[:2] for panel in trainer.curves.drawn_panels()]
