"""What a training depends on besides its settings: kept in its checkpoints, and compared when it goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d import checkpoint as checkpoints
from synfoc3d.config import versions
from synfoc3d.errors import UserError
from synfoc3d.networks.precision import resolve_precision
from synfoc3d.nnunet.plan_differences import differing_plans
from synfoc3d.trainers.life_cycle.case_facts import CaseFacts

Trainer = Any  # the base trainer, whose module imports this one
SHOWN = 3  # names of cases in a sentence


def dependencies_of(trainer: Trainer, facts: Mapping[str, CaseFacts]) -> dict[str, Any]:
    """Return what a checkpoint keeps beside nnU-Net's ``init_args``, which hold plans, dataset.json and fold.

    Args:
        trainer: the training.
        facts: what was measured on its cases.

    Returns:
        ``method``; ``split``, the cases by list; ``data``, digests of each case's image and label; and what may change
        the last digits of a number, ``versions``, ``device``, ``precision`` and ``processes``.
    """
    return {
        "method": trainer.method_class.__name__,
        "split": split_of(trainer),
        "data": {case: [fact.image, fact.label] for case, fact in facts.items()},
        **_machine(trainer),
    }


def _machine(trainer: Trainer) -> dict[str, Any]:
    precision = resolve_precision(trainer.settings.precision, trainer.device.type)
    machine = {"versions": versions(), "device": trainer.device.type, "precision": precision}
    return machine | {"processes": trainer.ranks.count}


def split_of(trainer: Trainer) -> dict[str, list[str]]:
    """Return the cases that a training takes from the split, as far as its method looks at them."""
    labeled, val = trainer.do_split()
    unlabeled = trainer.split().unlabeled if trainer.method_class.uses_unlabeled else ()
    return {"labeled": sorted(labeled), "unlabeled": sorted(unlabeled), "val": sorted(val)}


def refuse_other_training(trainer: Trainer, checkpoint: Mapping[str, Any], file: Path) -> None:
    """Refuse to go on with a checkpoint of another method, dataset, configuration, fold, plan or split.

    Raises:
        UserError: something differs; the sentence names it.
    """
    begun, kept = checkpoint["init_args"], checkpoints.section_of(checkpoint).get("depends_on", {})
    changed = _other_names(trainer, begun, kept)
    if not changed and kept:  # checkpoints of 0.1 have none, and plans of an older nnU-Net
        changed = differing_plans(begun, trainer.plans_manager.plans, trainer.dataset_json)
        changed = changed or _other_cases(kept["split"], split_of(trainer))
    if changed:
        raise UserError(
            f"{file} was trained with another {' and another '.join(changed)}: restore what it was "
            "trained with, or train anew without --c and --val."
        )


def _other_names(trainer: Trainer, begun: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    plans, own = PlansManager(dict(begun["plans"])), trainer.plans_manager
    pairs: dict[str, tuple[Any, Any]] = {
        "method": (kept.get("method", trainer.method_class.__name__), trainer.method_class.__name__),
        "dataset": (plans.dataset_name, own.dataset_name),
        "plans": (plans.plans_name, own.plans_name),
        "configuration": (begun["configuration"], trainer.configuration_name),
        "fold": (begun["fold"], trainer.fold),
    }
    return [f"{what} ({then}, not {now})" for what, (then, now) in pairs.items() if then != now]


def _other_cases(then: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the lists of a split that differ, and cases that came or went."""
    found = []
    for kind, cases in now.items():
        gone, new = sorted({*then[kind]} - {*cases}), sorted({*cases} - {*then[kind]})
        parts = [f"with {_names(gone)}"] if gone else []
        parts += [f"without {_names(new)}"] if new else []
        found += [f"list of {kind} cases ({', '.join(parts)})"] if parts else []
    return found


def refuse_changed_data(trainer: Trainer, then: Mapping[str, Sequence[str]]) -> None:
    """Refuse to go on with other images or labels than a training began with, under the same names.

    Args:
        trainer: one whose cases are measured.
        then: digests in a checkpoint; empty where it has none.

    Raises:
        UserError: images or labels have changed; the sentence names the cases.
    """
    now = trainer.depends_on["data"]
    changed = sorted(case for case, digest in then.items() if digest != now.get(case, digest))
    if changed:
        raise UserError(
            f"The preprocessed images or labels of {_names(changed)} in {trainer.preprocessed} are not those that the "
            "training began with: restore them, or train anew without --c."
        )


def tell_other_machine(trainer: Trainer, kept: Mapping[str, Any]) -> None:
    """Say in the log what is not as it was and may change the last digits of every number."""
    now = _machine(trainer)
    today = {**now.pop("versions"), **now}
    then = {**kept.get("versions", {}), **{key: kept[key] for key in now if key in kept}}
    changed = [f"{what} {then[what]}, now {today[what]}" for what in then if then[what] != today.get(what)]
    if changed:
        trainer.print_to_log_file(
            f"This training began with {'; '.join(changed)}: it goes on, but not to the last digit as it would have."
        )


def _names(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more
