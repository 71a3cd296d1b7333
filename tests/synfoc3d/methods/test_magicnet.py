"""MagicNet, against a second writing that goes cube by cube and voxel by voxel."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import Classes, LabelSpace, Regions, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods import magicnet
from synfoc3d.methods.base import Batch, Builder, Progress, full_resolution
from synfoc3d.methods.magicnet import Frequency, MagicNet, MagicNetSettings, with_deepest_features

PATCHES = {2: (12, 8), 3: (6, 12, 8)}
STRIDES = {2: (2, 2), 3: (1, 2, 2)}
SPLITS = {2: (3, 4), 3: (3, 3, 4)}
SIZE = 2
CASES = [(2, 4, 3), (3, 2, 2), (3, 4, 1)]  # dimensions, classes, input channels
LATE = Progress(70_000, 70_000)
THREE_REGIONS = Regions([(1, 2, 3), (2, 3), (3,)], [1, 2, 3])


def unet(case: tuple[int, int, int], residual: bool = False, deep: bool = True, local: bool = False) -> nn.Module:
    """A tiny network of nnU-Net's; a local one sees nothing beyond blocks of its stride."""
    ndim, classes, channels = case
    convolution, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[ndim]
    return (ResidualEncoderUNet if residual else PlainConvUNet)(
        channels, 3, (3, 4, 5), convolution, 1 if local else 3, (1, 1, STRIDES[ndim]), 1, num_classes=classes,
        n_conv_per_stage_decoder=1, conv_bias=True, norm_op=None if local else norm, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, deep_supervision=deep,
    )  # fmt: skip


def builder(case: tuple[int, int, int], labels: LabelSpace | None = None, **network: bool) -> Builder:
    labels = labels or Classes(case[1])
    return Builder(
        labels,
        lambda: unet((case[0], labels.num_channels, case[2]), **network),
        lambda: pytest.fail("MagicNet has no foundation network"),
        lambda output, labeled: segmentation_loss(full_resolution(output), labeled.target, labels),
        lambda weak, _: weak,
        PATCHES[case[0]],
    )


def make(case: tuple[int, int, int], labels: LabelSpace | None = None, **options: Any) -> MagicNet:
    """A method whose teacher lags behind, and whose answers are neither all alike nor all the background."""
    network = {key: options.pop(key) for key in ("residual", "deep", "local") if key in options}
    torch.manual_seed(0)
    method = MagicNet(MagicNetSettings(**options), builder(case, labels, **network))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (method.teacher, method.conventional):
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
            part.decoder.seg_layers[-1].bias.zero_()  # type: ignore[index, union-attr]
    return method


@pytest.fixture
def batch_of(make_batch: Callable) -> Callable[[tuple[int, int, int]], Batch]:
    return lambda case: make_batch(case, SIZE, shape=PATCHES[case[0]])


# --- the second writing -----------------------------------------------------------------------------------------------


def places(ndim: int) -> list[tuple[slice, ...]]:
    sides = [size // n for size, n in zip(PATCHES[ndim], SPLITS[ndim], strict=True)]
    numbers = product(*map(range, SPLITS[ndim]))
    return [tuple(slice(i * s, (i + 1) * s) for i, s in zip(at, sides, strict=True)) for at in numbers]


def last_features(network: Any, x: Tensor) -> Tensor:
    """Input of the final convolution, from the decoder's own parts."""
    skips = network.encoder(x)
    low = skips[-1]
    for s, stage in enumerate(network.decoder.stages):
        low = stage(torch.cat((network.decoder.transpconvs[s](low), skips[-(s + 2)]), 1))
    return low


def dice(p: Tensor, label: Tensor) -> Tensor:
    terms = []
    for c in range(p.shape[1]):
        truth = (label == c).float()
        terms.append(1 - 2 * (p[:, c] * truth).sum() / (p[:, c].square().sum() + truth.sum()))
    return torch.stack(terms).mean()


def slow_cross(method: Any, images: Tensor, order: Tensor) -> Tensor:
    """Features of mixed patches are moved back, then convolved, as published."""
    mixed = torch.empty_like(images)
    where = [(slice(None), *place) for place in places(images.ndim - 2)]
    for n, at in enumerate(where):
        for b in range(len(images)):
            mixed[b][at] = images[order[b, n]][at]
    features = last_features(method.conventional, mixed)
    recovered = torch.zeros_like(features)
    for n, at in enumerate(where):
        for b in range(len(images)):
            recovered[order[b, n]][at] = features[b][at]
    return method.conventional.decoder.seg_layers[-1](recovered)


def slow_within(method: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits from the features of single cubes, and the deepest features of all cubes, image after image."""
    recovered, deepest = None, []
    for b, image in enumerate(images):
        for place in places(images.ndim - 2):
            cube = image[(slice(None), *place)][None]
            features = last_features(method.conventional, cube)
            if recovered is None:
                recovered = features.new_zeros(len(images), features.shape[1], *images.shape[2:])
            recovered[(b, slice(None), *place)] = features[0]
            deepest.append(method.conventional.encoder(cube)[-1].flatten())
    return method.conventional.decoder.seg_layers[-1](recovered), torch.stack(deepest)


def slow_location_loss(method: Any, deepest: Tensor) -> Tensor:
    first, norm, _, last = method.location
    x = deepest @ first.weight.T + first.bias
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    x = torch.where(x > 0, x, 0.2 * x) @ last.weight.T + last.bias
    cubes = x.shape[1]
    return torch.stack([-x[i].log_softmax(0)[i % cubes] for i in range(len(x))]).mean()


def voxels(x: Tensor) -> Any:
    return product(range(len(x)), *map(range, x.shape[2:]))


def slow_blend(z: Tensor, q: Tensor, counts: list[int]) -> tuple[Tensor, float]:
    """Classes after blending, and the mean share."""
    label, shares = torch.empty(len(z), *z.shape[2:], dtype=torch.int64), []
    for b, *at in voxels(z):
        teacher, cubes = z[(b, slice(None), *at)], q[(b, slice(None), *at)]
        r = counts[int(teacher.argmax())] / max(counts)
        label[(b, *at)] = ((1 - r) * teacher + r * cubes).argmax()
        shares.append(r)
    return label, sum(shares) / len(shares)


def draws(batch: Batch, ndim: int, seed: int) -> tuple[Tensor, Tensor]:
    """The order of cubes and the noise that a step draws."""
    torch.manual_seed(seed)
    order = torch.rand(2 * SIZE, math.prod(SPLITS[ndim])).argsort(0)
    return order, (0.1 * torch.randn(batch.unlabeled.weak.shape)).clamp(-0.2, 0.2)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.1 * math.exp(-5)), (35_100, 0.1 * math.exp(-1.25)), (70_000, 0.1), (90_000, 0.1)]
)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("case", CASES, ids=["2d-K4-rgb", "3d-K2-2ch", "3d-K4"])
def test_loss_of_a_step(case: Any, residual: bool, step: int, weight: float, batch_of: Callable) -> None:
    method, batch = make(case, residual=residual), batch_of(case)
    counts = [90, 30, 60, 0][: case[1]]
    method.frequency.last.copy_(torch.tensor([counts]))
    order, noise = draws(batch, case[0], 7)
    images = torch.cat([batch.labeled.image, batch.unlabeled.weak])
    truth = batch.labeled.target.label
    plain = full_resolution(method.conventional(images))
    cross, (within, deepest) = slow_cross(method, images, order), slow_within(method, images)
    z = method.teacher(batch.unlabeled.weak + noise)
    pseudo, share = slow_blend(z, within[SIZE:], counts) if step else (z.argmax(1), 0.0)
    expected = {
        "loss_supervised": cross_entropy(plain[:SIZE], truth) + dice(plain[:SIZE].softmax(1), truth),
        "loss_cross": dice(cross[:SIZE].softmax(1), truth),
        "loss_within": dice(within[:SIZE].softmax(1), truth),
        "loss_location": slow_location_loss(method, deepest),
        "loss_consistency": dice(cross[SIZE:].softmax(1), pseudo),
        "blend": torch.tensor(share),
    }
    supervised, crossed, single, location, consistency, _ = expected.values()
    loss = (supervised + crossed + single) / 4 + 0.1 * location + weight * consistency

    torch.manual_seed(7)
    found = method.terms(batch, Progress(step, 100_000))
    torch.testing.assert_close(found.loss, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.unlabeled, plain[SIZE:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logs, {k: v.detach() for k, v in expected.items()}, rtol=1e-4, atol=1e-5)
    assert pseudo.unique().numel() > 1 and torch.equal(pseudo, z.argmax(1)) == (step == 0)  # else it says little


def test_settings_weigh_the_parts(batch_of: Callable) -> None:
    case = CASES[1]
    settings = {"consistency_weight": 3, "rampup_length": 4, "rampup_unit": 5, "location_weight": 2, "noise": 0}
    found = make(case, **settings).terms(batch_of(case), Progress(10, 100))
    logs = found.logs
    labeled = (logs["loss_supervised"] + logs["loss_cross"] + logs["loss_within"]) / 4
    weight = 3 * math.exp(-5 * (1 - 2 / 4) ** 2)
    torch.testing.assert_close(found.loss, labeled + 2 * logs["loss_location"] + weight * logs["loss_consistency"])


def test_defaults_are_the_published_ones_for_btcv() -> None:
    assert MagicNetSettings().model_dump() == {
        "consistency_weight": 0.1,
        "rampup_length": 200,
        "rampup_unit": 350,
        "location_weight": 0.1,
        "noise": 0.1,
        "ema_decay": 0.99,
    }


def test_labeled_loss_is_given_every_output_of_the_labeled_patches(batch_of: Callable) -> None:
    case, seen = CASES[2], []
    method, batch = make(case), batch_of(case)
    loss = method.build.supervised_loss
    method.build = replace(
        method.build, supervised_loss=lambda output, labeled: seen.append(output) or loss(output, labeled)
    )
    method.terms(batch, LATE)
    torch.testing.assert_close(seen, [method.conventional(batch.labeled.image)], rtol=1e-4, atol=1e-5)
    assert len(seen[0]) == 2


def test_auxiliary_outputs_change_nothing_here(batch_of: Callable) -> None:
    case, losses = CASES[0], []
    for deep in (True, False):
        method = make(case, deep=deep)
        torch.manual_seed(3)
        losses.append(method.terms(batch_of(case), LATE).loss)
    assert torch.equal(*losses)


# --- cubes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_cubes_that_stay_give_the_plain_answer(case: Any, batch_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magicnet, "draw_order", lambda images, cubes: torch.arange(images)[:, None].repeat(1, cubes))
    method, image = make(case), batch_of(case).labeled.image
    assert torch.equal(method.cross(image), full_resolution(method.conventional(image)))


@pytest.mark.parametrize("case", CASES)
def test_network_that_sees_no_neighbors_answers_alike_on_any_cubes(case: Any, batch_of: Callable) -> None:
    method, image = make(case, local=True), batch_of(case).labeled.image
    plain = full_resolution(method.conventional(image))
    torch.testing.assert_close(method.cross(image), plain)
    torch.testing.assert_close(method.within(image)[0], plain)


def test_other_networks_answer_otherwise_on_cubes(batch_of: Callable) -> None:
    method, image = make(CASES[1]), batch_of(CASES[1]).labeled.image
    plain = full_resolution(method.conventional(image))
    assert not torch.allclose(method.cross(image), plain, atol=0.1)
    assert not torch.allclose(method.within(image)[0], plain, atol=0.1)


def test_split_is_said() -> None:
    method = make(CASES[1])
    assert method.split == SPLITS[3]
    assert method.remark == "MagicNet cuts a patch of 6 x 12 x 8 voxels into 3 x 3 x 4 cubes of 2 x 4 x 2."


def test_patch_that_cannot_be_cut_is_refused_before_the_first_step() -> None:
    with pytest.raises(UserError, match="MagicNet cannot cut a patch of 4 x 2 voxels into cubes"):
        MagicNet(MagicNetSettings(), replace(builder(CASES[0]), patch_size=(4, 2)))


def test_other_networks_are_refused() -> None:
    with pytest.raises(UserError, match="PlainConvUNet or ResidualEncoderUNet, and the plans name a Identity"):
        MagicNet(MagicNetSettings(), replace(builder(CASES[0]), conventional=nn.Identity))


# --- the network stays nnU-Net's --------------------------------------------------------------------------------------


def hooks_of(module: nn.Module) -> list[Any]:
    return [hook for m in module.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_step_leaves_no_trace_on_the_network(batch_of: Callable) -> None:
    case = CASES[1]
    method, stock = make(case), unet(case)
    method.terms(batch_of(case), LATE)
    assert hooks_of(method) == []
    assert method.conventional.state_dict().keys() == stock.state_dict().keys() == method.teacher.state_dict().keys()
    image = torch.randn(1, case[2], *PATCHES[3])
    copied = copy.deepcopy(method.conventional)(image)
    torch.testing.assert_close(copied, method.conventional(image), rtol=0, atol=0)


def test_failing_network_keeps_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = unet(CASES[1])
    monkeypatch.setattr(network.decoder, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        with_deepest_features(network, torch.randn(1, 2, 6, 12, 8))
    assert hooks_of(network) == []


@pytest.mark.parametrize("residual", [False, True])
def test_deepest_features_are_the_encoders(residual: bool) -> None:
    network: Any = unet(CASES[1], residual)
    image = torch.randn(2, 2, 6, 12, 8)
    output, deepest = with_deepest_features(network, image)
    assert torch.equal(deepest, network.encoder(image)[-1])
    torch.testing.assert_close(output, network(image), rtol=0, atol=0)


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "blended"), [(0, False), (100, False), (101, True)])
def test_blending_begins_after_a_hundred_steps(step: int, blended: bool, batch_of: Callable) -> None:
    case = CASES[2]
    method, weak = make(case, noise=0), batch_of(case).unlabeled.weak
    method.frequency.last.copy_(torch.tensor([[8, 2, 4, 1]]))
    within = 9 * torch.randn(SIZE, 4, *PATCHES[3])
    z = method.teacher(weak)
    expected, share = slow_blend(z, within, [8, 2, 4, 1])
    target, blend = method.pseudo_label(weak, within, step)
    assert torch.equal(target.label, expected if blended else z.argmax(1))
    assert blend.item() == pytest.approx(share if blended else 0)
    assert not torch.equal(expected, z.argmax(1))


def test_nothing_is_blended_before_anything_was_counted(batch_of: Callable) -> None:
    """As where the training of a larger method begins late."""
    method, weak = make(CASES[2], noise=0), batch_of(CASES[2]).unlabeled.weak
    target, blend = method.pseudo_label(weak, torch.randn(SIZE, 4, *PATCHES[3]), 5001)
    assert torch.equal(target.label, method.teacher(weak).argmax(1)) and blend == 0


def test_each_region_is_blended_by_itself(batch_of: Callable) -> None:
    method, weak = make((3, 4, 1), THREE_REGIONS, noise=0), batch_of((3, 4, 1)).unlabeled.weak
    counts = [[80, 20], [10, 40], [50, 0]]  # outside and inside of each region
    method.frequency.last.copy_(torch.tensor(counts))
    z, q = method.teacher(weak), 5 * torch.randn(SIZE, 3, *PATCHES[3])
    target, blend = method.pseudo_label(weak, q, 101)
    shares = []
    for b, *at in voxels(z):
        for region in range(3):
            z_here, q_here = float(z[(b, region, *at)]), float(q[(b, region, *at)])
            r = counts[region][int(z_here > 0)] / max(counts[region])
            assert (int(target.label[(b, *at)]) >> region) & 1 == int((1 - r) * z_here + r * q_here > 0)
            shares.append(r)
    assert blend.item() == pytest.approx(sum(shares) / len(shares), rel=1e-5)


@pytest.mark.parametrize("labels", [Classes(2), Classes(4), THREE_REGIONS], ids=["K2", "K4", "regions"])
def test_counts_are_those_of_twenty_steps_at_a_time(labels: LabelSpace) -> None:
    frequency, random = Frequency(labels), torch.Generator().manual_seed(0)
    highest = 8 if isinstance(labels, Regions) else labels.num_channels
    store: list[int] = []
    counted: list[int] = []
    for step in range(62):
        label = (torch.rand(2, 3, 4, generator=random) ** 2 * highest).long()
        found = frequency.of(label)
        for b, y, x in product(range(2), range(3), range(4)):
            value = int(label[b, y, x])
            if isinstance(labels, Regions):
                for r in range(3):
                    alike = [(old >> r) & 1 == (value >> r) & 1 for old in counted]
                    most = max(sum(alike), len(alike) - sum(alike), 1)
                    assert found[b, r, y, x].item() == pytest.approx(sum(alike) / most)
            else:
                most = max([counted.count(c) for c in range(highest)] + [1])
                assert found[b, 0, y, x].item() == pytest.approx(counted.count(value) / most)
        frequency.count(label, step)
        store += label.flatten().tolist()
        if step % 20 == 0:
            counted, store = store, []


def test_pseudo_labels_of_a_step_are_counted(batch_of: Callable) -> None:
    method, batch = make(CASES[2], noise=0), batch_of(CASES[2])
    method.terms(batch, Progress(0, 10))
    decided = method.teacher(batch.unlabeled.weak).argmax(1).flatten().bincount(minlength=4)
    assert torch.equal(method.frequency.last, decided[None])
    method.terms(batch, Progress(1, 10))
    assert torch.equal(method.frequency.running, decided[None]) and torch.equal(method.frequency.last, decided[None])


def test_training_goes_on_from_the_saved_state(batch_of: Callable) -> None:
    method, batch = make(CASES[2]), batch_of(CASES[2])
    for step in (20, 21):
        method.terms(batch, Progress(step, 1000))
    other = make(CASES[2])
    other.load_state_dict(method.state_dict())
    losses = []
    for trained in (method, other):
        torch.manual_seed(5)
        found = trained.terms(batch, Progress(120, 1000))
        losses.append((found.loss, found.logs["blend"], trained.frequency.last))
    assert all(torch.equal(*pair) for pair in zip(*losses, strict=True))
    assert losses[0][1] > 0


# --- who learns what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [Classes(4), THREE_REGIONS], ids=["classes", "regions"])
def test_student_and_head_learn_and_the_teacher_does_not(labels: LabelSpace, batch_of: Callable) -> None:
    method = make((3, 4, 1), labels)
    method.teacher.requires_grad_(True)
    method.terms(batch_of((3, 4, 1)), LATE).loss.backward()
    unused = ("decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias")  # no weight in this labeled loss
    trained = {name: p for name, p in method.conventional.named_parameters() if name not in unused}
    trained |= dict(method.location.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert all(p.grad.any() for name, p in trained.items() if name.endswith("weight"))
    assert all(p.grad is None for p in method.teacher.parameters())


def test_places_are_learned_by_encoder_and_head_alone(batch_of: Callable) -> None:
    method, batch = make(CASES[1]), batch_of(CASES[1])
    _, deepest = method.within(batch.labeled.image)
    method.location_loss(deepest).backward()
    network: Any = method.conventional
    assert all(p.grad is not None for p in (*network.encoder.parameters(), *method.location.parameters()))
    own = [p for name, p in network.decoder.named_parameters() if not name.startswith("encoder.")]
    assert own and all(p.grad is None for p in own)


def test_places_can_be_learned(batch_of: Callable) -> None:
    method, image = make(CASES[1]), batch_of(CASES[1]).labeled.image
    optimizer = torch.optim.Adam([*method.conventional.parameters(), *method.location.parameters()], lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = method.location_loss(method.within(image)[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8 * math.log(36) and losses[-1] < 0.3 * losses[0]


def test_head_is_trained_beside_the_one_student() -> None:
    method = make(CASES[0])
    assert dict(method.students()) == {"conventional": method.conventional}
    assert dict(method.auxiliaries()) == {"location": method.location}
    assert {"frequency.last", "frequency.running", "location.0.weight"} <= method.state_dict().keys()
    shapes = [tuple(p.shape) for p in method.location.parameters()]
    assert shapes == [(4096, 10), (4096,), (4096,), (4096,), (12, 4096), (12,)]


def test_only_the_teacher_sees_noise(batch_of: Callable) -> None:
    method, batch, seen = make(CASES[1], noise=0.5), batch_of(CASES[1]), {"student": [], "teacher": []}
    method.conventional.register_forward_pre_hook(lambda _, inputs: seen["student"].append(inputs[0]))
    method.teacher.register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0]))
    method.terms(batch, LATE)
    images = torch.cat([batch.labeled.image, batch.unlabeled.weak])
    assert torch.equal(seen["student"][0], images)
    assert all(torch.equal(x.flatten().sort()[0], images.flatten().sort()[0]) for x in seen["student"])
    noise = seen["teacher"][0] - batch.unlabeled.weak
    assert len(seen["student"]) == 3 and len(seen["teacher"]) == 1 and 0.9 < noise.abs().max() <= 1 + 1e-6


def test_hidden_labels_are_never_read(batch_of: Callable) -> None:
    batch, losses = batch_of(CASES[2]), []
    for hidden in (batch.unlabeled.hidden, Target(1 - batch.unlabeled.hidden.label.clamp(0, 1))):
        method = make(CASES[2])
        torch.manual_seed(0)
        changed = replace(batch, unlabeled=replace(batch.unlabeled, hidden=hidden))
        losses.append(method.terms(changed, LATE).loss)
    assert torch.equal(*losses)


def test_labels_that_are_not_known_count_in_no_part(batch_of: Callable) -> None:
    batch, losses = batch_of(CASES[2]), []
    truth = batch.labeled.target.label
    valid = torch.randint(2, truth.shape, generator=torch.Generator().manual_seed(2))
    for label in (truth, truth * valid, truth * (1 - valid)):  # the first two differ where nothing is known
        method = make(CASES[2])
        torch.manual_seed(0)
        target = Target(label, valid=valid.float())
        losses.append(method.terms(replace(batch, labeled=replace(batch.labeled, target=target)), LATE).loss)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_teacher_is_the_moving_average() -> None:
    method = make(CASES[0], ema_decay=0.75)
    old = [p.clone() for p in method.teacher.parameters()]
    method.update_teachers(1000)
    for a, b, new in zip(old, method.conventional.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.75 * a + 0.25 * b.detach())
    assert not method.teacher.decoder.deep_supervision


@pytest.mark.parametrize(
    "wrong",
    [{"ema_decay": 1}, {"noise": -1}, {"rampup_length": 0}, {"rampup_unit": 0}, {"location_weight": -1},
     {"consistency_weight": -0.1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MagicNetSettings(**wrong)
