"""ECT on SAM 2.1 tiny: the paper's 0.94 million trainable weights, and a step."""

from dataclasses import replace

import pytest
import torch

from synfoc3d.losses.label_space import Classes
from synfoc3d.methods.base import Progress
from synfoc3d.methods.ect import ECT, ECTSettings
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.propagation import PropagatingFoundation

CASE = (3, 2, 1)


@pytest.fixture(scope="module")
def ect(make_builder):
    torch.manual_seed(0)
    base = build_sam("sam2.1_hiera_tiny", 64, 4).eval()
    foundation = PropagatingFoundation(base, 64, num_channels=2, background=True, rank=16, tokens=False)
    return ECT(ECTSettings(), replace(make_builder(CASE), labels=Classes(2), foundation=lambda: foundation))


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def test_trainable_weights_are_as_many_as_the_paper_says(ect):
    assert [sum(p.numel() for p in trained(s).values()) for s in (ect.foundation, ect.strong)] == [472_144] * 2
    assert sum(p.numel() for p in trained(ect).values()) == 944_288


def test_both_streams_start_as_the_base_decoder_bit_for_bit(ect):
    base = ect.foundation.network
    images = torch.rand(2, 1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    chains = ect.foundation.center_chains(2, 3)
    with torch.no_grad():
        features = ect.foundation.embed(images)
        first = torch.tensor([1, 4])  # the middle slices
        points = torch.tensor([[[32.0, 32.0]]] * 2), torch.ones(2, 1)
        expected, _ = base.decode(features.take(first), base.embed_prompts(points=points))
        for stream in (ect.foundation, ect.strong):
            assert torch.equal(stream.follow(features, 3, chains)[:, 1], expected[:, 0])


def test_a_step_teaches_the_adapters_and_nothing_of_the_base(ect, make_batch):
    ect.training_step(make_batch(CASE), Progress(9, 10)).loss.backward()
    learned = {name.rpartition(".b.")[0] for name, p in trained(ect).items() if p.grad is not None and p.grad.any()}
    unread = ("iou", "obj_score", "hypernetworks_mlps.1", "hypernetworks_mlps.2", "hypernetworks_mlps.3")
    sites = {name.rpartition(".b.")[0] for name in trained(ect) if ".b." in name}
    assert learned - {""} == {site for site in sites if not any(part in site for part in unread)}
    assert all(p.grad is None for p in ect.parameters() if not p.requires_grad)
