"""A training may switch its shortcuts on and off between one epoch and the next."""

import pytest
import torch
import yaml

from synfoc3d.config import SpeedSettings
from synfoc3d.networks.foundation import build_sam
from synfoc3d.trainers.life_cycle.saving import checkpoint_of

NONE = dict.fromkeys(SpeedSettings.model_fields, False)
ALL = dict.fromkeys(SpeedSettings.model_fields, True)
SHORT = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights of the compact network, which get adapters."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("base") / "base.pth"
    torch.save(build_sam("compact", 32, 2).state_dict(), file)
    return {"name": "compact", "image_size": 32, "checkpoint": str(file)}


@pytest.mark.parametrize(("before", "after"), [({}, NONE), (NONE, ALL)], ids=["switched off", "switched on"])
def test_training_goes_on_without_shortcuts_or_with(project, base, monkeypatch, tmp_path, before, after):
    with project.active("shortcuts"):
        first = project.trainer(foundation=base, speed=before, **SHORT)
        first.run_training()
        file = project.results("shortcuts") / "checkpoint_final.pth"
        saved = torch.load(file, weights_only=True)["synfoc3d"]
        again = project.trainer(resume=True)
        settings = tmp_path / "speed.yaml"
        settings.write_text(yaml.safe_dump({"epochs": 2, "speed": after}))
        monkeypatch.setenv("SYNFOC3D_CONFIG", str(settings))
        again.load_checkpoint(str(file))
        now = checkpoint_of(again)["synfoc3d"]
        assert now["settings"]["speed"] == SpeedSettings(**after).model_dump() != saved["settings"]["speed"]
        for part in ("method", "students"):
            torch.testing.assert_close(now[part], saved[part], rtol=0, atol=0)
        again.run_training()
    assert again.current_epoch == 2


def test_checkpoint_without_the_section_has_all_shortcuts(project, base):
    with project.active("no_section"):
        project.trainer(foundation=base, **SHORT).run_training()
        file = project.results("no_section") / "checkpoint_final.pth"
        content = torch.load(file, weights_only=True)
        del content["synfoc3d"]["settings"]["speed"]
        torch.save(content, file)
        again = project.trainer(resume=True)
        again.load_checkpoint(str(file))
    assert again.settings.speed == SpeedSettings()
