"""A batch in parts: sums, means, losses and their gradients are those of the whole batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from synfoc3d.nnunet.shared_loss import over_ranks
from synfoc3d.shared_batch import (
    Part,
    mean,
    mean_of_some,
    own,
    own_items,
    own_volume,
    split_batch,
    total,
    whole,
    whole_count,
)

from ..ranks import in_ranks

BATCH = 3
IGNORED = 3


@pytest.mark.parametrize(("batch", "ranks", "sizes"), [(4, 2, [2, 2]), (5, 3, [2, 2, 1]), (3, 1, [3])])
def test_parts_are_adjacent_and_differ_by_one(batch: int, ranks: int, sizes: list[int]) -> None:
    parts = [split_batch(batch, rank, ranks) for rank in range(ranks)]
    assert [part.size for part in parts] == sizes
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(batch))


def test_each_rank_takes_its_own_of_what_is_drawn_for_all() -> None:
    drawn = torch.arange(12)  # two streams of three samples, two numbers each
    with Part(3, 1, 3, ranks=2).taken():
        assert whole_count(4) == 6 and whole_count(8) == 12
        assert own(drawn, 2).tolist() == [2, 3, 4, 5, 8, 9, 10, 11]
        assert own(drawn[:6]).tolist() == [1, 2, 4, 5] and own_items("abc") == ["b", "c"]
        assert [own_volume(volume) for volume in range(3)] == [None, 0, 1]


def test_one_process_leaves_everything_as_it_is() -> None:
    x = torch.rand(3, 4)
    for part in (None, Part(3, 0, 3)):
        with part.taken() if part else Part(3, 0, 3).taken():
            assert total(x) is x and whole(x) is x and own(x) is x and whole_count(3) == 3 and own_volume(2) == 2
            assert mean(x) == x.mean() and mean_of_some(x) == x.mean() and mean_of_some(x[:0]) == 0


# --- over two ranks, against the whole batch ----------------------------------------------------------------------


def dice(batch: bool, background: bool) -> dict[str, Any]:
    return {"batch_dice": batch, "smooth": 1e-5, "do_bg": background, "ddp": False}


def classes(ignore: int | None, batch: bool) -> nn.Module:
    return DC_and_CE_loss(dice(batch, False), {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


def regions(ignore: bool, batch: bool) -> nn.Module:
    return DC_and_BCE_loss({}, dice(batch, True), use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


LOSSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "classes": (lambda: classes(None, False), "label"),
    "classes, Dice over the batch": (lambda: classes(None, True), "label"),
    "ignored voxels, Dice over the batch": (lambda: classes(IGNORED, True), "sparse"),
    "ignored voxels": (lambda: classes(IGNORED, False), "sparse"),
    "regions": (lambda: regions(False, True), "masks"),
    "regions and ignored voxels": (lambda: regions(True, False), "sparse masks"),
}


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, 3, 4, 5, generator=generator, requires_grad=True)
    label = torch.randint(3, (BATCH, 1, 4, 5), generator=generator).to(torch.int16)
    sparse = torch.where(torch.rand(label.shape, generator=generator) < 0.5, IGNORED, label)
    sparse[2] = IGNORED  # the part of the second rank holds no label at all
    masks = torch.rand(BATCH, 3, 4, 5, generator=generator) < 0.4
    return {"logits": logits, "label": label, "sparse": sparse, "masks": masks,
            "sparse masks": torch.cat([masks, sparse == IGNORED], 1)}  # fmt: skip


def values(part: Part, shared: bool) -> dict[str, tuple[float, Tensor]]:
    """Every loss, and what of its gradient comes from the samples of a part."""
    given = {key: value[part.start : part.stop].detach() for key, value in data().items()}
    found = {}
    for name, compute in computations(shared).items():
        logits = given["logits"].clone().requires_grad_()
        with part.taken():
            loss = compute(given | {"logits": logits})
        loss.backward()
        assert logits.grad is not None
        found[name] = loss.item(), logits.grad
    return found


def computations(shared: bool) -> dict[str, Callable[[dict[str, Tensor]], Tensor]]:
    def of(make: Callable[[], nn.Module], target: str) -> Callable[[dict[str, Tensor]], Tensor]:
        loss = over_ranks(make()) if shared else make()
        return lambda given: loss(given["logits"], given[target])

    def elsewhere(given: dict[str, Tensor]) -> Tensor:
        """Each rank goes on with the sample before its own, as where samples are mixed."""
        before = own(whole(given["logits"]).roll(1, 0).exp())
        return mean(before * given["masks"])

    levels = DeepSupervisionWrapper(classes(None, True), (0.75, 0.25))
    levels = over_ranks(levels) if shared else levels
    return {name: of(*loss) for name, loss in LOSSES.items()} | {
        "deep supervision": lambda given: levels([given["logits"]] * 2, [given["label"]] * 2),
        "mean": lambda given: mean(given["logits"].square()) ** 2,
        "some": lambda given: mean_of_some(given["logits"][given["sparse"].expand(-1, 3, -1, -1) != IGNORED].exp()),
        "ratio": lambda given: total(given["logits"].exp().sum((0, 2, 3))).log().sum(),
        "elsewhere": elsewhere,
    }


def work() -> dict[str, tuple[float, Tensor]]:
    dist.init_process_group("gloo")
    found = values(split_batch(BATCH, dist.get_rank(), 2), shared=True)
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return in_ranks(2, work, folder), values(Part(BATCH, 0, BATCH), shared=False)


@pytest.mark.parametrize("name", computations(shared=False))
def test_two_ranks_have_the_loss_and_the_gradient_of_one_process(both: Any, name: str) -> None:
    ranks, (loss, gradient) = [results[name] for results in both[0]], both[1][name]
    assert [other for other, _ in ranks] == pytest.approx([loss, loss], rel=1e-6, abs=1e-7)
    averaged = torch.cat([its for _, its in ranks]) / 2  # as DistributedDataParallel does with gradients of weights
    torch.testing.assert_close(averaged, gradient, rtol=1e-5, atol=1e-8)
