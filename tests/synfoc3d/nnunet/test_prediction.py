"""Networks over whole preprocessed cases."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from synfoc3d.config import FoundationSettings
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.intensity import intensity_range, resolve_range, to_unit
from synfoc3d.nnunet.prediction import CasePredictor, on_net_grid

CPU = torch.device("cpu")
PATCHES = {"2d": [20, 24], "3d_fullres": [4, 20, 24]}


class Plans:
    """As much of nnU-Net's plans as prediction asks for."""

    def get_configuration(self, name):
        return SimpleNamespace(patch_size=PATCHES[name])

    def get_label_manager(self, _):
        return LabelManager({"background": 0, "a": 1, "b": 2}, None)


def predictor(configuration, **options):
    axes = tuple(range(len(PATCHES[configuration])))
    return CasePredictor(Plans(), configuration, {}, mirror_axes=axes, device=CPU, **options)


@pytest.fixture(scope="module")
def foundation():
    torch.manual_seed(0)
    return build_foundation(FoundationSettings(name="compact", image_size=32), 3)[0].eval()


@pytest.fixture(scope="module")
def case():
    """(C, D, H, W), larger than a patch."""
    return torch.randn(1, 7, 25, 31, generator=torch.Generator().manual_seed(1))


class PatchProbabilities(torch.nn.Module):
    """The foundation network over whole 3D patches: the definition, in which slices are computed several times."""

    def __init__(self, foundation, case):
        super().__init__()
        self.foundation = foundation
        self.range = torch.from_numpy(intensity_range(case.numpy()))[None]

    def forward(self, patch):
        return on_net_grid(self.foundation, patch, self.range).softmax(1)


def nnunets_predictor(network, configuration):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):
        theirs = nnUNetPredictor(device=CPU, allow_tqdm=False)
    theirs.network = network
    theirs.configuration_manager = Plans().get_configuration(configuration)
    theirs.allowed_mirroring_axes = tuple(range(len(PATCHES[configuration])))
    return theirs


def nnunets_window(network, case, configuration):
    """Float32 sums over nnU-Net's own tiles and mirrored versions."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    theirs = nnunets_predictor(network, configuration)
    weight = compute_gaussian(tuple(PATCHES[configuration]), 1 / 8, 10, torch.float32, CPU)
    total, weights = torch.zeros(3, *case.shape[1:]), torch.zeros(case.shape[1:])
    for where in theirs._internal_get_sliding_window_slicers(case.shape[1:]):
        total[where] += theirs._internal_maybe_mirror_and_predict(case[where][None])[0] * weight
        weights[where[1:]] += weight
    return total / weights


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_foundation_equals_its_definition_over_patches(foundation, case, configuration):
    expected = nnunets_window(PatchProbabilities(foundation, case), case, configuration)
    found = predictor(configuration).foundation(foundation, case)
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.float().sum(0), torch.ones(case.shape[1:]), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("configuration", "calls"), [("2d", 2 * 4), ("3d_fullres", 2 * 4)])
def test_every_slice_goes_through_the_foundation_network_once_per_tile_and_mirroring(
    foundation, configuration, calls, monkeypatch
):
    seen = []
    inner = foundation.network.forward
    monkeypatch.setattr(foundation.network, "forward", lambda x: (seen.append(len(x)), inner(x))[1])
    predictor(configuration).foundation(foundation, torch.randn(1, 7, 20, 31))
    assert sum(seen) == 7 * calls


def test_without_mirroring_the_network_is_called_once_per_tile(foundation, monkeypatch):
    seen = []
    inner = foundation.network.forward
    monkeypatch.setattr(foundation.network, "forward", lambda x: (seen.append(len(x)), inner(x))[1])
    predictor("3d_fullres", mirroring=False, step_size=1.0).foundation(foundation, torch.randn(1, 5, 20, 24))
    assert sum(seen) == 5


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_patch_rule_takes_the_range_of_the_patch(foundation, case, configuration, monkeypatch):
    one_tile = case[..., :20, :24]
    whole_case = predictor(configuration).foundation(foundation, one_tile[:, :1])
    monkeypatch.setattr(foundation, "intensity", "patch")
    torch.testing.assert_close(predictor(configuration).foundation(foundation, one_tile[:, :1]), whole_case)
    brighter = torch.cat([one_tile, one_tile + 9], 1)
    parts = predictor(configuration).foundation(foundation, brighter)[:, :7]
    alone = predictor(configuration).foundation(foundation, one_tile)
    assert torch.equal(parts, alone) == (configuration == "2d")  # in 3D the other slices belong to the patch


@pytest.fixture(scope="module")
def canvas():
    """The same kind of network on canvases of a 3D patch, two of them a patch."""
    torch.manual_seed(0)
    settings = FoundationSettings(name="compact", image_size=48, arrangement="canvas", checkpoint="random")
    return build_foundation(settings, 3, PATCHES["3d_fullres"])[0].eval()


@pytest.mark.parametrize("rule", ["case", "patch", (-1.0, 2.0)])
def test_canvases_are_predicted_patch_by_patch_as_nnunet_does_with_mirroring_and_their_probabilities_averaged(
    canvas, case, rule, monkeypatch
):
    class Probabilities(torch.nn.Module):
        def forward(self, patch):
            value_range = resolve_range(rule, torch.from_numpy(intensity_range(case.numpy()))[None], patch)
            return canvas(to_unit(patch, value_range)).softmax(1)

    monkeypatch.setattr(canvas, "intensity", rule)
    shares = []
    found = predictor("3d_fullres").foundation(canvas, case, shares.append)
    expected = nnunets_window(Probabilities(), case, "3d_fullres")
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=0)
    assert sum(shares) == pytest.approx(1)


def test_conventional_in_3d_is_nnunets_own_and_reports_progress(case):
    torch.manual_seed(0)
    network, shares = torch.nn.Conv3d(1, 3, 3, padding=1), []
    found = predictor("3d_fullres").conventional(network, case, shares.append)
    theirs = nnunets_predictor(network, "3d_fullres")
    theirs.label_manager = SimpleNamespace(num_segmentation_heads=3)
    assert torch.equal(found, theirs.predict_sliding_window_return_logits(case))
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_precision_is_nnunets_unless_another_is_asked_for(precision):
    seen = []

    class Look(torch.nn.Conv2d):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x).float()

    predictor("2d", precision=precision).conventional(Look(1, 3, 1), torch.randn(1, 1, 20, 24))
    assert set(seen) == {precision is not None}


def test_foundation_logits_are_resampled_to_the_net_grid(foundation):
    image = torch.randn(2, 1, 20, 24)
    with torch.no_grad():
        assert on_net_grid(foundation, image, torch.tensor([[[-2.0, 2.0]]]).expand(2, -1, -1)).shape == (2, 3, 20, 24)
