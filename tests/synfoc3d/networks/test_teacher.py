"""EMA teachers: decay, shared weights, exact first copy."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.teacher import ema_decay_at, make_teacher, update_teacher


def foundation(full_finetune: bool = False) -> FoundationNetwork:
    torch.manual_seed(0)
    network = build_sam("compact", 64, 2)
    prepare_for_training(network, 4, full_finetune)
    return network


def conventional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))


def shake(network: nn.Module) -> None:
    """Change every trainable parameter, as an optimizer step would."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0), (1, 0.5), (2, 0.6667), (9, 0.9), (49, 0.98), (98, 0.98990), (99, 0.99), (10_000, 0.99)]
)
def test_decay_of_the_published_method(step: int, decay: float) -> None:
    assert ema_decay_at(step, 0.99) == pytest.approx(decay, abs=5e-5)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_decay_never_exceeds_its_limit(step: int, decay: float) -> None:
    assert 0 <= ema_decay_at(step, decay) <= decay


@pytest.mark.parametrize("make_student", [foundation, partial(foundation, full_finetune=True), conventional])
def test_teacher_starts_as_an_exact_copy(make_student: Callable[[], nn.Module]) -> None:
    student = make_student()
    teacher = make_teacher(student)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_teacher_shares_frozen_parameters_and_no_others() -> None:
    student = foundation()
    own = dict(make_teacher(student).named_parameters())
    assert all((own[name] is p) == (not p.requires_grad) for name, p in student.named_parameters())


@pytest.mark.parametrize("full_finetune", [False, True])
def test_copies_share_no_memory(full_finetune: bool) -> None:
    student = foundation(full_finetune)
    trainable = {p.data_ptr() for p in student.parameters() if p.requires_grad}
    assert trainable.isdisjoint(p.data_ptr() for p in make_teacher(student).parameters())


def test_teacher_requires_no_gradient_and_stays_in_train_mode() -> None:
    student = foundation().eval()
    teacher = make_teacher(student)
    assert teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_making_a_teacher_leaves_the_student_trainable() -> None:
    student = foundation()
    before = [p.requires_grad for p in student.parameters()]
    make_teacher(student)
    assert [p.requires_grad for p in student.parameters()] == before


@pytest.mark.parametrize("make_student", [foundation, conventional])
def test_first_update_makes_the_teacher_equal_to_the_bit(make_student: Callable[[], nn.Module]) -> None:
    student = make_student()
    teacher = make_teacher(student)
    shake(student)
    next(p for p in student.parameters() if p.requires_grad).data.view(-1)[0] = -0.0
    update_teacher(teacher, student, step=0)
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(own.view(torch.int32), other.view(torch.int32))


def test_update_is_the_weighted_sum() -> None:
    student = conventional()
    teacher = make_teacher(student)
    old = snapshot(teacher)
    shake(student)
    update_teacher(teacher, student, step=3, decay=0.6)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(teacher.state_dict()[name], 0.6 * old[name] + 0.4 * parameter.detach())


def test_teacher_is_the_mean_of_the_first_hundred_students() -> None:
    student = conventional().double()
    teacher = make_teacher(student)
    seen = []
    for step in range(100):
        shake(student)
        seen.append(parameters_to_vector(student.parameters()).detach())
        update_teacher(teacher, student, step)
    torch.testing.assert_close(parameters_to_vector(teacher.parameters()), torch.stack(seen).mean(0))


def test_averages_exactly_lora_decoder_and_prompt_encoder() -> None:
    student = foundation()
    teacher = make_teacher(student)
    old = snapshot(teacher)
    shake(student)
    update_teacher(teacher, student, step=5)
    moved = {name for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, old[name])}
    assert moved == {
        name for name, _ in student.named_parameters() if "image_encoder" not in name or ".a_" in name or ".b_" in name
    }


def test_parameters_without_gradient_are_averaged_too() -> None:
    student = foundation()
    student(torch.rand(1, 3, 64, 64)).sum().backward()
    name = "mask_decoder.iou_prediction_head.layers.0.weight"
    teacher = make_teacher(student)
    shake(student)
    update_teacher(teacher, student, step=0)
    assert student.get_parameter(name).grad is None
    assert torch.equal(teacher.get_parameter(name), student.get_parameter(name))


def test_buffers_are_not_averaged() -> None:
    student = conventional()
    teacher = make_teacher(student)
    student(torch.rand(2, 1, 5, 6))
    update_teacher(teacher, student, step=0)
    assert not teacher.get_buffer("1.running_mean").any() and student.get_buffer("1.running_mean").any()


def test_teacher_collects_its_own_batch_statistics() -> None:
    student = conventional()
    teacher = make_teacher(student)
    teacher(torch.rand(2, 1, 5, 6))
    name = "1.num_batches_tracked"
    assert teacher.get_buffer(name) == 1 and student.get_buffer(name) == 0


def test_update_gives_no_gradient_history() -> None:
    student = conventional()
    teacher = make_teacher(student)
    for step in range(2):
        update_teacher(teacher, student, step)
    assert not any(p.requires_grad or p.grad_fn for p in teacher.parameters())


def test_a_wholly_frozen_student_is_no_error() -> None:
    student = conventional().requires_grad_(False)
    update_teacher(make_teacher(student), student, step=7)
