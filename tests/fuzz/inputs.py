"""Bad inputs: one thing at a time is wrong with a file, a name, a variable or an argument of a command that would work.

Everything is drawn from one seed: the number of an input is enough to make it again.
"""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from values import CSV_TEXTS, FURTHER, NAMES, NUMBERS, VALUES, VARIABLE_VALUES, YAML_TEXTS

Change = Callable[[Path], None]  # damages the file it is given


@dataclass
class BadInput:
    """One call of the command line, and what is wrong with it.

    Attributes:
        kind: of what is wrong, such as ``json``.
        what: in words, for the list of findings.
        arguments: of the command line.
        file: that is damaged before the call and restored after it; None where none is.
        change: how.
        variables: environment variables of the call; None takes one away.
        certain: whether nobody may take the input for good: exit status 0 is a silent acceptance.
    """

    kind: str
    what: str
    arguments: list[str]
    file: Path | None = None
    change: Change | None = None
    variables: dict[str, str | None] = field(default_factory=dict)
    certain: bool = False


@dataclass(frozen=True)
class Place:
    """Where a trained project lies, and an empty folder that receives what commands write.

    Attributes:
        root: of nnU-Net's three folders and the scans.
        out: receives outputs.
    """

    root: Path
    out: Path

    @property
    def raw(self) -> Path:
        """The dataset in nnUNet_raw."""
        return self.root / "nnUNet_raw" / "Dataset501_Tiny"

    @property
    def preprocessed(self) -> Path:
        """The dataset in nnUNet_preprocessed."""
        return self.root / "nnUNet_preprocessed" / "Dataset501_Tiny"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.root / "nnUNet_results" / "Dataset501_Tiny" / "nnUNetTrainerSynFoC__nnUNetPlans__2d"

    def commands(self) -> dict[str, list[str]]:
        """Return a call of every command that works, by name."""
        scans, labels, out = self.root / "scans", self.raw / "labelsTr", self.out / "out"
        model = ["-d", "501", "-c", "2d", "-device", "cpu", "--disable_progress_bar"]
        settings = str(self.root / "fuzz.yaml")
        calls = {
            "import": ["-d", "502", "-n", "New", "--labeled", scans / "labeled", "--unlabeled", scans / "unlabeled"],
            "preprocess": ["-d", "501", "-c", "2d", "-np", "1"],
            "split": ["-d", "501", "--folds", "2"],
            "train": ["501", "2d", "0", "--config", settings, "-device", "cpu"],
            "experiment": [self.root / "plan.yaml", "-o", out, "--dry_run", "-device", "cpu"],
            "pretrain": ["-o", out, "-device", "cpu", "--set", "steps=1"],
            "predict": ["-i", scans / "unlabeled", "-o", out, *model, "-npp", "0", "-nps", "0", "--fast"],
            "rank": ["-i", scans / "unlabeled", "-o", out, *model, "-npp", "0"],
            "export": ["-d", "501", "-c", "2d", "-o", out],
            "evaluate": ["-g", labels, "-p", labels, "-np", "1", "-o", self.out / "out.json"],
            "compare": ["-g", labels, f"a={labels}", "-np", "1", "-o", out],
            "generate": ["-o", out, "--num-cases", "1", "--num-labeled", "1", "--num-test", "0"],
            "doctor": ["-d", "501"],
        }
        return {name: [name, *map(str, call)] for name, call in calls.items()}


# --- files -----------------------------------------------------------------------------------------------------------


def _cut(share: float) -> Change:
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)]) and None


def _flip(rng: random.Random, count: int) -> Change:
    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        for _ in range(count):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)

    return change


def _flip_in_gzip(rng: random.Random, count: int) -> Change:
    """Flip bits until they are missed: some are of no account in a compressed stream."""
    flip = _flip(rng, count)

    def change(file: Path) -> None:
        packed = file.read_bytes()
        while True:
            flip(file)
            try:
                if gzip.decompress(file.read_bytes()) != gzip.decompress(packed):
                    return
            except (OSError, EOFError, zlib.error):
                return
            file.write_bytes(packed)

    return change


def _text(text: str | bytes) -> Change:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda file: file.write_bytes(content) and None


def _paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - any JSON
    """Yield the keys that lead to every value of a JSON content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))


def _json_value(rng: random.Random) -> tuple[str, Change]:
    """Give one value of a JSON file another type, or take it out."""
    value, position, gone = rng.choice(VALUES), rng.random(), rng.random() < 0.3

    def change(file: Path) -> None:
        content = json.loads(file.read_text())
        paths = list(_paths(content))
        *above, last = paths[int(position * len(paths))]
        part = content
        for key in above:
            part = part[key]
        if gone:
            del part[last]
        else:
            part[last] = value
        file.write_text(json.dumps(content))

    return (f"value {int(1000 * position)} gone" if gone else f"value {int(1000 * position)} is {value!r}"[:60]), change


def _json_damage(rng: random.Random) -> tuple[str, Change, bool]:
    """Damage a JSON file as a whole, or one value of it."""
    whole = {
        "empty": _text(""),
        "a list": _text("[]"),
        "null": _text("null"),
        "an object without entries": _text("{}"),
        "not UTF-8": _text(b'{"a": "\xff"}'),
        "nested deeply": _text("[" * 5000),
        "cut": _cut(rng.uniform(0.05, 0.9)),
    }
    if rng.random() < 0.3:
        name = rng.choice(list(whole))
        return name, whole[name], name != "an object without entries"  # import knows what to do without
    what, change = _json_value(rng)
    return what, change, False


def _nifti_damage(rng: random.Random) -> tuple[str, Change, bool]:
    """Damage a compressed NIfTI file: the compression, or a field of its header."""
    choice = rng.choice(["cut", "flip", "text", "empty", *["header"] * 4])
    if choice == "cut":
        return "gzip cut", _cut(rng.uniform(0.1, 0.99)), True
    if choice == "flip":
        return "gzip with flipped bits", _flip_in_gzip(rng, rng.choice([1, 5, 20])), True
    if choice in ("text", "empty"):
        return f"no image: {choice}", _text("no image" if choice == "text" else ""), True
    offset, form, value = rng.choice(
        [
            (0, "<i", rng.choice([0, 540, -1])),  # size of the header
            (40, "<h", rng.choice([0, 1, 2, 4, 7, 8, -1])),  # number of axes
            (42 + 2 * rng.randrange(3), "<h", rng.choice([0, -1, 1, 30000])),  # length of an axis
            (70, "<h", rng.choice([0, 1, 32, 128, 1792, 4096, -3])),  # type of voxels
            (72, "<h", rng.choice([0, 1, 7, 64])),  # bits per voxel
            (76 + 4 * rng.randrange(8), "<f", rng.choice([0.0, -1.0, 1e9, float("nan"), float("inf")])),  # spacing
            (108, "<f", rng.choice([0.0, 1e9, -352.0, float("nan")])),  # where voxels begin
            (112, "<f", rng.choice([float("nan"), float("inf"), 1e38])),  # slope
            (116, "<f", rng.choice([float("nan"), float("inf"), 1e38])),  # intercept
            (123, "<B", rng.choice([0, 1, 3, 255])),  # units
            (252, "<h", rng.choice([0, 9, -1])),  # code of the qform
            (254, "<h", rng.choice([0, 9, -1])),  # code of the sform
            (280 + 4 * rng.randrange(12), "<f", rng.choice([0.0, 1e30, float("nan")])),  # sform
            (344, "<i", 0),  # magic
        ]
    )

    def change(file: Path) -> None:
        content = bytearray(gzip.decompress(file.read_bytes()))
        struct.pack_into(form, content, offset, value)
        file.write_bytes(gzip.compress(bytes(content)))

    return f"NIfTI header: {value} at byte {offset}", change, False


# --- names, variables, arguments -------------------------------------------------------------------------------------


def _options(call: Sequence[str]) -> list[int]:
    """Return the places of values behind an option, and of those without one, that are no flags themselves."""
    return [place for place, text in enumerate(call) if place and not text.startswith("-")]


def bad_argument(rng: random.Random, place: Place) -> BadInput:
    """Give one argument of a command another value."""
    call = list(rng.choice(list(place.commands().values())))
    position = rng.choice(_options(call))
    value = rng.choice(NUMBERS if rng.random() < 0.5 else NAMES)
    what = f"{call[0]}: {call[position - 1]} {value!r}"[:100]
    call[position] = value
    return BadInput("argument", what, call)


def further_option(rng: random.Random, place: Place) -> BadInput:
    """Add an option with a bad value."""
    name = rng.choice(list(FURTHER))
    option, values = rng.choice(FURTHER[name])
    value = rng.choice(values)
    return BadInput("option", f"{name} {option} {value!r}"[:100], [*place.commands()[name], option, value])


def bad_variable(rng: random.Random, place: Place) -> BadInput:
    """Give an environment variable a bad value."""
    variable = rng.choice(
        ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_def_n_proc",
        "SYNFOC3D_CONFIG",
         "SYNFOC3D_HOME", "nnUNet_extTrainer"]
    )  # fmt: skip
    counts = "n_proc" in variable
    value = rng.choice(("", "-1", "two", "1.5", "²", "99999999") if counts else VARIABLE_VALUES)
    name, call = rng.choice(list(place.commands().items()))
    value = None if value is None else value.replace("OUT", str(place.out))
    return BadInput(
        "variable", f"{name}: {variable}={value!r}"[:100], call, variables={variable: value}, certain=counts
    )


def bad_json(rng: random.Random, place: Place) -> BadInput:
    """Damage a JSON file."""
    of_model = ["predict", "rank", "export"]
    file, commands, whole = rng.choice(
        [
            (place.model / "plans.json", of_model, True),
            (place.model / "dataset.json", of_model, True),
            (place.model / "fold_0" / "synfoc3d_validation.json", ["predict"], True),
            (place.preprocessed / "nnUNetPlans.json", ["preprocess", "train", "doctor"], True),
            (place.preprocessed / "dataset.json", ["train", "doctor"], True),
            (place.preprocessed / "dataset_fingerprint.json", ["preprocess", "doctor"], False),
            (place.preprocessed / "splits_semi.json", ["train", "doctor"], True),
            (place.raw / "dataset.json", ["preprocess", "split", "evaluate", "compare", "doctor"], True),
            (place.root / "scans" / "labeled" / "dataset.json", ["import"], True),
        ]
    )
    name = rng.choice(commands)
    what, change, certain = _json_damage(rng)
    return BadInput(
        "json", f"{name}: {file.name}: {what}", place.commands()[name], file, change, certain=certain and whole
    )


def bad_yaml(rng: random.Random, place: Place) -> BadInput:
    """Damage a file of settings or a plan."""
    if rng.random() < 0.7:
        text, certain = rng.choice(YAML_TEXTS)
        call = place.commands()["train"]
        return BadInput("yaml", f"train: {text[:60]!r}", call, place.root / "fuzz.yaml", _text(text), certain=certain)
    file = place.root / "plan.yaml"
    change, what = rng.choice(
        [
            (_cut(rng.uniform(0.05, 0.9)), "cut"),
            (_flip(rng, 1), "a flipped bit"),
            (_text("{}"), "empty"),
            (_text("a: 1"), "other"),
        ]
    )
    return BadInput("yaml", f"experiment: {what}", place.commands()["experiment"], file, change)


def bad_csv(rng: random.Random, place: Place) -> BadInput:
    """Damage a table."""
    text, file = rng.choice(CSV_TEXTS), place.root / "fuzz.csv"
    commands = place.commands()
    call, certain = rng.choice(
        [
            ([*commands["import"], "--domains", str(file)], True),
            ([*commands["import"], "--annotated", str(file)], True),
            ([*commands["evaluate"], "--domains", str(file)], True),
            ([*commands["evaluate"], "--annotated", str(file)], True),
            ([*commands["compare"], "--domains", str(file)], True),
            ([*commands["split"], "--labeled-ids", str(file)], True),
        ]
    )
    return BadInput("csv", f"{call[0]} {call[-2]}: {text[:40]!r}", call, file, _text(text), certain=certain)


def bad_scan(rng: random.Random, place: Place) -> BadInput:
    """Damage a scan or a label."""
    name = rng.choice(["import", "predict", "rank", "evaluate", "compare"])
    folders = {
        "import": [
            place.root / "scans/labeled/images",
            place.root / "scans/labeled/labels",
            place.root / "scans/unlabeled",
        ],
        "predict": [place.root / "scans/unlabeled"],
        "rank": [place.root / "scans/unlabeled"],
        "evaluate": [place.raw / "labelsTr"],
        "compare": [place.raw / "labelsTr"],
    }
    file = rng.choice(sorted(rng.choice(folders[name]).glob("*.nii.gz")))
    what, change, certain = _nifti_damage(rng)
    return BadInput("scan", f"{name}: {file.name}: {what}", place.commands()[name], file, change, certain=certain)


def bad_checkpoint(rng: random.Random, place: Place) -> BadInput:
    """Damage a checkpoint."""
    name = rng.choice(["predict", "rank", "export"])
    file = place.model / "fold_0" / "checkpoint_final.pth"
    what, change = rng.choice(
        [
            ("cut", _cut(rng.uniform(0.01, 0.99))),
            ("flipped bits", _flip(rng, 4000)),
            ("text", _text("no checkpoint")),
            ("empty", _text("")),
        ]
    )
    return BadInput("checkpoint", f"{name}: checkpoint: {what}", place.commands()[name], file, change, certain=True)


KINDS = (
    bad_argument,
    further_option,
    bad_variable,
    bad_json,
    bad_json,
    bad_yaml,
    bad_csv,
    bad_scan,
    bad_scan,
    bad_checkpoint,
)


def bad_input(number: int, seed: int, place: Place) -> BadInput:
    """Make one input, which depends on its number and the seed alone; kinds take turns."""
    rng = random.Random(f"{seed}/{number}")
    return KINDS[number % len(KINDS)](rng, place)
