"""Number formats of devices."""

from typing import Any

import pytest
import torch

from synfoc3d.networks import precision
from synfoc3d.networks.precision import autocast, resolve_precision


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_named_format_is_taken(name: Any, device: str) -> None:
    assert resolve_precision(name, device) == name


@pytest.mark.parametrize(("device", "name"), [("cuda", "float16"), ("mps", "float32")])
def test_automatic_format_of_an_accelerator(device: str, name: str) -> None:
    assert resolve_precision("auto", device) == name


@pytest.mark.parametrize(("units", "name"), [(True, "bfloat16"), (False, "float32")])
def test_automatic_format_of_a_cpu(units: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_multiplies_bfloat16", lambda: units)
    assert resolve_precision("auto", "cpu") == name


QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize("answers", [(True, True), (True, False), (False, True), (False, False)])
def test_torch_is_asked_for_either_unit(answers: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    for question, answer in zip(QUESTIONS, answers, strict=True):
        monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)
    assert resolve_precision("auto", "cpu") == ("bfloat16" if any(answers) else "float32")


def test_torch_without_the_questions_computes_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for question in QUESTIONS:
        monkeypatch.delattr(torch.cpu, question, raising=False)
    assert resolve_precision("auto", "cpu") == "float32"


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_computes_in_the_format(name: Any, dtype: torch.dtype) -> None:
    with autocast(name, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("keep", [False, True])
def test_autocast_keeps_casts_only_where_asked(keep: bool) -> None:
    with autocast("bfloat16", "cpu", keep_casts=keep):
        assert torch.is_autocast_cache_enabled() is keep


def test_a_pass_without_gradient_does_not_take_it_from_the_next() -> None:
    layer = torch.nn.Conv2d(1, 1, 3)
    with autocast("bfloat16", "cpu"):
        with torch.no_grad():
            layer(torch.ones(1, 1, 4, 4))
        layer(torch.ones(1, 1, 4, 4)).sum().backward()
    assert layer.weight.grad is not None
