"""SAM 2 in trainings: SynFoC learns with it, in 2D and 3D, and its checkpoints give the same network again."""

import numpy as np
import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.sam2 import Sam2Network

from ..synfoc3d.networks.small_sam2 import SMALL, original_state, published

CONFIGURATIONS = ["2d", "3d_fullres"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as MedSAM2 publishes it, of a network with few blocks and channels."""
    file = tmp_path_factory.mktemp("weights") / "MedSAM2_latest.pt"
    torch.save({"model": original_state(published(64).state_dict())}, file)
    return file


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """MedSAM2's network has few blocks and channels."""
    monkeypatch.setitem(ARCHITECTURES, "sam2.1_hiera_tiny", SMALL)


def settings_for(file):
    foundation = {"name": "medsam2", "image_size": 64, "checkpoint": str(file)}
    return {"epochs": 1, "iterations_per_epoch": 1, "foundation": foundation}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_synfoc_trains_adapters_prompt_free_tokens_and_decoder(project, weights, configuration):
    made = project.train("sam2", configuration=configuration, **settings_for(weights))
    # figures of pseudo-labels are NaN where a patch shows no structure
    assert all(np.isfinite(value) for key, value in made.curves.rows[0].items() if key.startswith("loss"))
    student = made.students["foundation"].network
    before = dict(student.named_parameters())
    base = torch.load(weights)["model"]
    assert isinstance(student, Sam2Network)
    qkv = "blocks.1.attn.qkv"
    assert torch.equal(before[f"image_encoder.backbone.{qkv}.base.weight"], base[f"image_encoder.trunk.{qkv}.weight"])
    assert before[f"image_encoder.backbone.{qkv}.b_q.weight"].any()
    for name in ("mask_decoder.conv_s0.weight", "mask_decoder.obj_score_token.weight"):
        assert not torch.equal(before[name], base[f"sam_{name}"])
    name = "prompt_encoder.not_a_point_embed.weight"
    assert not torch.equal(before[name], base[f"sam_{name}"])


def test_rebuilt_network_gives_the_same_logits(project, weights):
    with project.active("sam2_saved"):
        made = project.trainer(**settings_for(weights))
        made.run_training()
    content = checkpoints.load(project.results("sam2_saved") / "checkpoint_final.pth")
    rebuilt = checkpoints.rebuild_foundation(content, made.labels.space.num_channels)
    images = torch.rand(2, 1, 12, 20)
    expected = made.students["foundation"].eval()(images)
    torch.testing.assert_close(rebuilt(images), expected)
    saved = content["synfoc3d"]["students"]["foundation"]
    assert not any(name.endswith("qkv.base.weight") for name in saved)
