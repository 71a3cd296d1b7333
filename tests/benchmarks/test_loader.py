"""The benchmark of the loader draws a training's own batches."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..shortcuts import sample_few_voxels, start_no_pools


@pytest.fixture(scope="module")
def loader(benchmark_named: Callable[[str], Any]) -> Any:
    return benchmark_named("loader")


@pytest.fixture(scope="module")
def trainer(loader: Any) -> Iterator[Any]:
    data = loader.Data(shape=(28, 24, 6), cases=5, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        start_no_pools(patch)
        sample_few_voxels(patch)
        out = sys.stdout
        with loader.preprocessed(data) as folder:
            assert sys.stdout is out  # for the rows
            yield loader.trainer_of(data, folder.parent)


def test_cases_are_as_many_as_asked_for(trainer: Any) -> None:
    assert len(trainer.unlabeled_folders()) == 5 and len(trainer.do_split()[0]) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_trainings_own(loader: Any, trainer: Any, workers: int) -> None:
    with loader.batches_of(trainer, workers) as batches:
        batch = loader.next_batch(batches)
    assert len(batch["data"]) == len(batch["unlabeled_data"]) == 2
    assert batch["data"].shape[2:] == tuple(trainer.configuration_manager.patch_size)


def test_rows_count_patches_of_both_streams(loader: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "rate", lambda _trainer, workers, _count: (2.0 / (1 + workers), 0.5))
    rows = list(loader.rates(trainer, [0, 1], 3, rounds=2))
    assert [row["patches_per_second"] for row in rows] == [[2.0] * 3, [4.0] * 3]
    assert rows[0]["processor_seconds_per_patch"] == 0.125
    assert loader.computed(rows[1], 12) == {
        "row": "computed", "measured": False, "workers": 12, "from_workers": 1, "patches_per_second": 96.0,
    }  # fmt: skip


def test_processor_time_is_that_of_who_makes_the_batches(loader: Any, trainer: Any) -> None:
    seconds, busy = loader.rate(trainer, 0, 3)
    assert 0 < busy and 0 < seconds


def test_start_measures_the_ranges_only_once(loader: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from synfoc3d.trainers.life_cycle import case_facts

    measured, measure = [], case_facts.intensity_range
    monkeypatch.setattr(case_facts, "intensity_range", lambda voxels: measured.append(1) or measure(voxels))
    row = loader.start(trainer, 0)
    assert row["cases"] == 5 and len(measured) == 5 + 4  # unlabeled, labeled and validation cases
