"""Whether two trainings are the same to the last bit."""

import torch

FILES = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_best_foundation.pth")  # what is compared
TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")  # of nnU-Net's log, and what is not


def differences(first: object, second: object, at: str = "") -> list[str]:
    """Return where two nested values differ in a bit or in a type."""
    if type(first) is not type(second):
        return [f"{at}: {type(first).__name__}, {type(second).__name__}"]
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) and first.dtype == second.dtype else [at]
    if isinstance(first, dict):
        if list(first) != list(second):
            return [f"{at}: keys"]
        return [found for key in first for found in differences(first[key], second[key], f"{at}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{at}: length"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{at}/{index}")]
    same = first == second or (first != first and second != second)
    return [] if same else [f"{at}: {first}, {second}"]
