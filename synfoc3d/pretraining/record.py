"""What a pre-training leaves behind: weights, curves and a record of how they came about."""

import csv
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from synfoc3d.checkpoint import save_atomic
from synfoc3d.config import versions
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.figures import figure_file
from synfoc3d.networks.precision import resolve_precision
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.pretraining.state import PretrainingState


def write_curves(state: PretrainingState, folder: Path) -> None:
    """Write ``curves.csv``, one row per validation, and ``curves.png``."""
    text = io.StringIO()
    columns = max(state.rows, key=len)  # the row before the first step has no training losses
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: round(value, 5) for key, value in row.items()} for row in state.rows)
    atomic_write_text(folder / "curves.csv", text.getvalue())
    panels = state.task.panels
    with figure_file(folder / "curves.png", 1, len(panels), (3.5, 3.0)) as (_, axes):
        for panel, (name, title) in zip(axes[0], panels.items(), strict=True):
            for prefix, label in (("train_", "training"), ("val_", "validation")):
                points = [(row["step"], row[prefix + name]) for row in state.rows if prefix + name in row]
                steps, losses = [step for step, _ in points], [loss for _, loss in points]
                panel.plot(steps, losses, label=label, marker="." if len(points) < 3 else None)
            panel.set(title=title, xlabel="step")
        axes[0][0].legend()


def write_weights(state: PretrainingState, folder: Path) -> Path:
    """Write the file of weights that the run is for, and return its path."""
    file = folder / state.task.file_name
    save_atomic(state.task.content(state.average), file)
    return file


def write_record(state: PretrainingState, folder: Path, weights: Path) -> None:
    """Write ``record.json``: how the weights were made, on what, and what they reached."""
    atomic_write_text(folder / "record.json", json.dumps(describe(state, weights), indent=2) + "\n")


def describe(state: PretrainingState, weights: Path) -> dict[str, Any]:
    """Return the record of a run as plain values: time in seconds, size of the weights in bytes."""
    settings, device = state.settings, next(state.network.parameters()).device
    return {
        "weights": weights.name,
        "sha256": file_hash(weights),
        "bytes": weights.stat().st_size,
        "objective": state.objective,
        **state.task.facts(),
        "parameters": sum(p.numel() for p in state.network.parameters() if p.requires_grad),
        "data": "generated images only",
        "started_from": state.started_from,
        "seed": settings.seed,
        "steps": state.step,
        "images": state.task.images_per_step * state.step,
        "seconds": round(state.seconds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": resolve_precision(settings.precision, device.type),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), **versions()},
        "validation_first": _validation(state.rows[0]),
        "validation_last": _validation(state.rows[-1]),
        "settings": settings.model_dump(mode="json"),
    }


def _validation(row: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in row.items() if key == "step" or key.startswith("val_")}
