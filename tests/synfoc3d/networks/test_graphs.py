"""Networks recorded for the GPU: which calls are replayed, and that a training stays what it was."""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.networks import graphs
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.graphs import WARM_UP, Recorder, forget_recordings, record_networks
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.teacher import make_teacher, update_teacher

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Stub:
    """Stands for a recording where there is no GPU; says so in its answer."""

    made = 0

    def __init__(self):
        self.is_pending = False

    @classmethod
    def of(cls, network, images):
        cls.made += 1
        return cls()

    def replay(self, images):
        return "replayed"


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(graphs, "_Recording", Stub)
    monkeypatch.setattr(graphs, "_has_room", lambda: True)
    monkeypatch.setattr(Recorder, "_is_recordable", lambda self, *_: self.network.training)
    Stub.made = 0
    return Recorder(nn.Linear(3, 2))


def test_calls_are_replayed_once_torch_is_warm(recorder):
    images = torch.ones(4, 3)
    for _ in range(WARM_UP):
        assert torch.equal(recorder(images), recorder.forward(images))
    assert [recorder(images) for _ in range(3)] == ["replayed"] * 3 and Stub.made == 1


def test_other_shapes_formats_and_gradients_are_calls_of_another_kind(recorder):
    calls = [torch.ones(4, 3), torch.ones(5, 3), torch.ones(4, 3, dtype=torch.float64)]
    recorder.forward = lambda images: images
    for images in calls:
        for _ in range(WARM_UP + 1):
            recorder(images)
    with torch.no_grad():
        assert [type(recorder(calls[0])) for _ in range(WARM_UP + 1)] == [torch.Tensor] * WARM_UP + [str]
    assert Stub.made == len(calls) + 1


def test_call_whose_gradient_is_to_come_keeps_its_memory(recorder):
    images = torch.ones(4, 3)
    for _ in range(WARM_UP + 1):
        recorder(images)
    (recording,) = recorder.recordings.values()
    recording.is_pending = True
    assert torch.equal(recorder(images), recorder.forward(images))
    recording.is_pending = False
    assert recorder(images) == "replayed"


def test_weights_that_lie_elsewhere_are_noticed(recorder):
    images = torch.ones(4, 3)
    for _ in range(WARM_UP + 1):
        recorder(images)
    recorder.network.weight.data = torch.zeros(2, 3)
    assert torch.equal(recorder(images), recorder.network.bias.expand(4, 2)) and not recorder.recordings


def test_what_cannot_be_recorded_ends_the_training_in_a_sentence(recorder, monkeypatch):
    """Torch may still be in the middle of a recording: seen to give networks that learn nothing."""

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(Stub, "of", fail)
    images = torch.ones(4, 3)
    for _ in range(WARM_UP):
        recorder(images)
    expected = (
        "what Linear does (operation not permitted when stream is capturing): train with speed.cuda_graphs=false."
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        recorder(images)


def test_shapes_that_never_come_again_are_not_recorded(recorder):
    for size in range(1, 2 * graphs.MANY):
        for _ in range(WARM_UP + 2):
            recorder(torch.ones(size, 3))
    assert Stub.made == graphs.MANY


def test_nothing_is_recorded_on_a_cpu_and_all_can_be_taken_back():
    networks = nn.ModuleDict({"one": nn.Linear(3, 2), "other": nn.Linear(2, 1)})
    state = networks.state_dict()
    record_networks(networks)
    for _ in range(WARM_UP + 2):
        networks["one"](torch.ones(4, 3))
    assert all(isinstance(network.forward, Recorder) and not network.forward.calls for network in networks.values())
    assert networks.state_dict().keys() == state.keys()
    assert not forget_recordings(networks) and "forward" not in networks["one"].__dict__
    assert networks["one"](torch.ones(4, 3)).shape == (4, 2)


def test_networks_that_recompute_or_keep_statistics_are_left_alone():
    one, other = SlicewiseFoundation(build_sam("compact", 32, 2, checkpointing=True), 32), nn.BatchNorm2d(2)
    networks = nn.ModuleDict({"one": one, "other": other, "third": nn.BatchNorm2d(2, track_running_stats=False)})
    record_networks(networks)
    assert ["forward" in network.__dict__ for network in networks.values()] == [False, False, True]


class Graph:
    """Stands for a CUDA graph: what it does when it is replayed."""

    def __init__(self, does=lambda: None):
        self.replay = does


@pytest.mark.parametrize(
    ("output", "gradients", "is_equal"),
    [
        ([1.0, 2.0], ([3.0], None), True),
        ([1.001, 2.0], ([3.001], None), True),
        ([1.1, 2.0], ([3.0], None), False),
        ([1.0, 2.0], ([0.0], None), False),
        ([1.0, 2.0], (None, [3.0]), False),
        ([float("nan"), 2.0], ([3.0], None), False),
    ],
)
def test_recording_is_compared_with_what_was_computed(output, gradients, is_equal):
    values = torch.zeros(2)
    forward = Graph(lambda: values.copy_(torch.tensor(output)))
    given = tuple(value if value is None else torch.tensor(value) for value in gradients)
    recording = graphs._Recording(torch.zeros(1), [values], None, forward, [], [], given, Graph())
    with contextlib.nullcontext() if is_equal else pytest.raises(RuntimeError, match="differs from what is computed"):
        recording.compare([torch.tensor([1.0, 2.0])], (torch.tensor([3.0]), None))


# --- on a GPU -------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """A student that has two outputs, and one with adapters, each with a teacher."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conventional = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(8, 2, 3, padding=1))
        network = build_sam("compact", 64, 2)
        prepare_for_training(network, 4, False)
        self.foundation = SlicewiseFoundation(network, 64)
        self.conventional_teacher = make_teacher(self.conventional)
        self.foundation_teacher = make_teacher(self.foundation)


def train(recorded, kind, steps=10):
    """Losses of steps in which the conventional student is called twice, and what became of all weights."""
    pair = Pair().cuda()
    if recorded:
        record_networks(pair)
    students = {"conventional": pair.conventional, "foundation": pair.foundation}
    optimizers = [torch.optim.AdamW((p for p in s.parameters() if p.requires_grad), 1e-3) for s in students.values()]
    scaler, losses = torch.amp.GradScaler("cuda", enabled=kind == torch.float16), []
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        images = torch.rand(3, 1, 64, 64, generator=generator).cuda()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", kind, enabled=kind != torch.float32):
            with torch.no_grad():
                first, taught = pair.conventional_teacher(images), pair.foundation_teacher(images)
                second = pair.conventional_teacher(images.flip(-1))  # must not lie where the first one does
                target = (first.float() - second.float()).softmax(1)
                pair.conventional(images)
            answers = [pair.conventional(images), pair.conventional(images.flip(-1)), pair.foundation(images)]
            loss = sum(F.mse_loss(F.interpolate(a.float(), (64, 64)).softmax(1), target) for a in answers)
            loss = loss + F.mse_loss(answers[2].float(), taught.float() + 1)
        scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            scaler.step(optimizer)
        scaler.update()
        for name, student in students.items():
            update_teacher(pair.get_submodule(f"{name}_teacher"), student, step, 0.9)
        losses.append(loss.item())
    return losses, pair


@on_gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_recorded_training_is_the_same(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    (losses, pair), (recorded_losses, recorded) = train(False, kind), train(True, kind)
    tolerance = 1e-5 if kind == torch.float32 else 5e-3
    assert recorded_losses == pytest.approx(losses, rel=tolerance)
    assert [len(network.forward.recordings) for network in recorded.children()] == [2, 1, 1, 1]
    kinds = {recording.backward is not None for recording in recorded.conventional.forward.recordings.values()}
    assert kinds == {True, False}
    for (name, value), other in zip(pair.state_dict().items(), recorded.state_dict().values(), strict=True):
        torch.testing.assert_close(
            other, value, rtol=10 * tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@on_gpu
def test_replayed_gradient_is_the_computed_one():
    pair = Pair().cuda()
    twin = copy.deepcopy(pair.foundation)
    record_networks(pair)
    for seed in range(WARM_UP + 4):
        images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed)).cuda()
        for network in (pair.foundation, twin):
            network.zero_grad()
            (network(images) * images.mean()).square().mean().backward()
        for (name, parameter), other in zip(twin.named_parameters(), pair.foundation.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert pair.foundation.forward.recordings


@on_gpu
def test_recording_that_gives_something_else_is_refused():
    class Changing(nn.Linear):
        calls = 0

        def forward(self, images):
            Changing.calls += 1
            return super().forward(images) * Changing.calls

    networks = nn.ModuleDict({"one": Changing(3, 3)}).cuda()
    record_networks(networks)
    with pytest.raises(UserError, match="differs from what is computed"):
        for _ in range(WARM_UP + 1):
            networks["one"](torch.ones(2, 3, device="cuda")).sum().backward()


@on_gpu
def test_kernels_are_chosen_before_the_recording(monkeypatch):
    """With cudnn's search for the fastest kernels, also for an output of which no gradient was asked before."""

    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 5)

        def forward(self, images):
            return [self.one(images), self.other(images)]

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    networks = nn.ModuleDict({"one": TwoOutputs()}).cuda()
    record_networks(networks)
    for _ in range(WARM_UP + 3):
        networks.zero_grad()
        networks["one"](torch.ones(2, 1, 32, 32, device="cuda"))[0].sum().backward()
    torch.testing.assert_close(networks["one"].one.bias.grad, torch.full((4,), 2.0 * 30 * 30, device="cuda"))
    assert networks["one"].forward.recordings


@on_gpu
def test_network_that_asks_the_gpu_in_between_ends_the_training():
    """The last test: torch is left in the middle of a recording."""

    class Asking(nn.Linear):
        def forward(self, images):
            return super().forward(images) if images.sum().item() > 0 else images

    networks = nn.ModuleDict({"one": Asking(3, 3)}).cuda()
    record_networks(networks)
    with pytest.raises(UserError, match="cannot record what Asking does"):
        for _ in range(WARM_UP + 1):
            networks["one"](torch.ones(2, 3, device="cuda")).sum().backward()
