"""Plain fine-tuning of the foundation network: its loss, and what it sees."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from synfoc3d.config import read_partial, resolve
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.fine_tuning import FineTuning, FineTuningSettings
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import to_unit

START = Progress(0, 10)


def by_hand(logits: Tensor, target: Tensor, dice_weight: float) -> Tensor:
    """SAMed's loss as its paper and code have it, class by class."""
    probabilities = logits.softmax(1)
    dice = torch.zeros(())
    for c in range(logits.shape[1]):
        p, y = probabilities[:, c], (target == c).float()
        dice += 1 - 2 * (p * y).sum() / (p.square().sum() + y.square().sum())
    entropy = -probabilities.log().gather(1, target[:, None]).mean()
    return (1 - dice_weight) * entropy + dice_weight * dice / logits.shape[1]


def logits_and_target(method: FineTuning, batch: Batch) -> tuple[Tensor, Tensor]:
    labeled = batch.labeled
    logits = method.foundation(to_unit(labeled.image, labeled.value_range))
    return logits, resize_in_plane(labeled.target.label, (logits.shape[-2], logits.shape[-1]), "nearest")


@pytest.mark.parametrize("dice_weight", [0.0, 0.8, 1.0])
def test_loss_is_the_published_one(case: Any, make_builder: Callable, make_batch: Callable, dice_weight: float) -> None:
    method, batch = FineTuning(FineTuningSettings(dice_weight=dice_weight), make_builder(case)), make_batch(case)
    result = method.training_step(batch, START)
    torch.testing.assert_close(result.loss, by_hand(*logits_and_target(method, batch), dice_weight))


def test_published_shares_are_the_defaults() -> None:
    assert FineTuningSettings().dice_weight == 0.8


def test_both_terms_are_logged(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method = FineTuning(FineTuningSettings(), make_builder(case))
    result = method.training_step(make_batch(case), START)
    torch.testing.assert_close(result.loss, 0.2 * result.logs["loss_ce"] + 0.8 * result.logs["loss_dice"])
    assert not any(value.requires_grad for value in result.logs.values())


def test_needs_no_unlabeled_images(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method = FineTuning(FineTuningSettings(), make_builder(case))
    assert not method.uses_unlabeled
    assert method.training_step(replace(make_batch(case), unlabeled=None), START).loss > 0


def test_there_is_no_conventional_network(case: Any, make_builder: Callable) -> None:
    method = FineTuning(FineTuningSettings(), make_builder(case))
    assert dict(method.students()) == {"foundation": method.foundation}
    assert {name.split(".")[0] for name in method.state_dict()} == {"foundation"}


def test_everything_that_trains_learns(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method = FineTuning(FineTuningSettings(), make_builder(case))
    method.training_step(make_batch(case), START).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters() if p.requires_grad)


def test_only_the_window_is_seen(case_3d: Any, make_builder: Callable, make_batch: Callable) -> None:
    method, batch = FineTuning(FineTuningSettings(window=1), make_builder(case_3d)), make_batch(case_3d)
    seen = []
    method.foundation.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[2]))
    assert method.training_step(batch, START).loss > 0
    assert seen == [1]


@pytest.mark.parametrize("changes", [{"dice_weight": 1.1}, {"window": -1}])
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        FineTuningSettings(**changes)


def test_preset_holds_the_published_numbers() -> None:
    settings = resolve(read_partial("samed"), FineTuningSettings)
    optimizer = settings.optimizers.foundation
    assert settings.method == FineTuningSettings(dice_weight=0.8)
    assert (settings.foundation.name, settings.foundation.image_size, settings.foundation.lora_rank) == (
        "sam_vit_b", 512, 4,
    )  # fmt: skip
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 5e-3, 0.1)
    assert (optimizer.schedule, optimizer.warmup, optimizer.gradient_norm) == ("poly_step", 250, None)
    assert settings.batch_size == 24
