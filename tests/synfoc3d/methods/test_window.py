"""Some slices of each sample, spread over it."""

import pytest
import torch

from synfoc3d.methods.window import Window, draw_window


@pytest.mark.parametrize("lead", [(), (2,)])
def test_cut_takes_each_samples_own_slices(lead: tuple[int, ...]) -> None:
    x = torch.rand(2, *lead, 5, 3, 4)
    part = Window(((1, 2), (0, 4))).cut(x)
    assert torch.equal(part[0], x[0, ..., 1:3, :, :]) and torch.equal(part[1], x[1, ..., [0, 4], :, :])


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 4, 5), (2, 1, 3, 4, 5)])
def test_no_window_is_everything(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert torch.equal(Window().cut(x), x)


def test_put_is_the_inverse_of_cut() -> None:
    x, part = torch.rand(2, 3, 5, 3, 4), torch.rand(2, 3, 2, 3, 4)
    window = Window(((0, 1), (0, 3)))
    whole = window.put(x, part)
    assert torch.equal(window.cut(whole), part)
    assert torch.equal(whole[0, :, 2:], x[0, :, 2:]) and torch.equal(whole[1, :, [1, 2, 4]], x[1, :, [1, 2, 4]])


def test_put_leaves_its_argument_alone() -> None:
    x = torch.zeros(1, 1, 3, 2, 2)
    Window(((1,),)).put(x, torch.ones(1, 1, 1, 2, 2))
    assert not x.any()


def test_put_without_window_replaces_everything() -> None:
    part = torch.rand(1, 2, 3, 4, 5)
    assert Window().put(torch.zeros_like(part), part) is part


@pytest.mark.parametrize(("slices", "size"), [(5, 0), (5, 5), (5, 6), (1, 1), (1, 3)])
def test_window_of_all_slices_is_none(slices: int, size: int) -> None:
    assert draw_window(2, slices, size) == Window()


def test_one_slice_of_each_part_and_every_slice_in_turn() -> None:
    torch.manual_seed(0)
    parts = ({0, 1}, {2, 3}, {4, 5, 6})  # of seven slices, as equal as can be
    drawn = [indices for _ in range(60) for indices in draw_window(3, 7, 3).indices]
    assert all(index in part for indices in drawn for index, part in zip(indices, parts, strict=True))
    assert {index for indices in drawn for index in indices} == set(range(7))


def test_samples_have_windows_of_their_own() -> None:
    torch.manual_seed(0)
    assert len(set(draw_window(8, 100, 4).indices)) > 1
