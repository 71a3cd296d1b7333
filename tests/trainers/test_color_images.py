"""Color photographs keep their colors: channels called ``rgb_to_0_1``, and the preset ``fundus``."""

import json

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RGBTo01Normalization

from synfoc3d.config import read_partial
from synfoc3d.losses.label_space import Classes
from synfoc3d.networks.intensity import to_unit
from synfoc3d.trainers.life_cycle.batches import make_batch

COLORS = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 20)).astype(np.float32)
COLORS[:, 0] = COLORS[:, 0] // 2 + 128  # reddish, as the retina is
CASE_RANGE = torch.tensor([[[0.5, 0.9], [0.1, 0.8], [0.0, 0.7]]] * 2)  # percentiles: of each channel by itself


@pytest.fixture
def batch_of(project, tmp_path):
    """Return a function (normalization, **augmentation) -> the preset's batch of the photographs, on both streams."""

    def make(normalization, **augmentation):
        place = project.copy(tmp_path / normalization)
        file = place.preprocessed / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        plans["configurations"]["2d"]["normalization_schemes"] = [normalization] * 3
        file.write_text(json.dumps(plans))
        preset = read_partial("fundus")
        with place.active():
            trainer = place.trainer(
                foundation={"name": "compact", "checkpoint": "random", "intensity": preset["foundation"]["intensity"]},
                augmentation=preset["augmentation"] | augmentation,
            )
        trainer.students = {}
        image = torch.from_numpy(RGBTo01Normalization(False, {}).run(COLORS.copy()))
        target = torch.zeros(2, 1, 12, 20)
        raw = {"data": image, "target": target, "value_range": CASE_RANGE}
        both = raw | {f"unlabeled_{key}": value for key, value in raw.items()}
        return make_batch(both, trainer.device, trainer.settings.foundation.intensity, trainer.strong_view, Classes(2))

    return make


def test_foundation_network_sees_the_published_colors(batch_of):
    batch = batch_of("RGBTo01Normalization")
    for image, value_range in (
        (batch.labeled.image, batch.labeled.value_range),
        (batch.unlabeled.weak, batch.unlabeled.value_range),
    ):
        assert np.array_equal(to_unit(image, value_range).numpy(), COLORS / 255)


def test_contrast_zero_leaves_one_gray(batch_of):
    strong = batch_of("RGBTo01Normalization", contrast=[0, 0], brightness=[1, 1]).unlabeled.strong
    gray = (299 * COLORS[:, 0] + 587 * COLORS[:, 1] + 114 * COLORS[:, 2]).mean((1, 2)) / 255_000
    np.testing.assert_allclose(strong, np.broadcast_to(gray[:, None, None, None], COLORS.shape), rtol=1e-5)


def test_channels_under_other_names_have_their_own_means(batch_of):
    strong = batch_of("ZScoreNormalization", contrast=[0, 0], brightness=[1, 1]).unlabeled.strong
    means = COLORS.mean((2, 3), keepdims=True) / 255
    np.testing.assert_allclose(strong, np.broadcast_to(means, COLORS.shape), rtol=1e-5)
