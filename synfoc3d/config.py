"""The typed settings tree: presets and files in, resolved YAML out, unknown keys refused.

A preset (``configs/*.yaml``) or a user's file is a partial YAML of :class:`Settings`. The ``method`` section belongs to
the trainer's method and is validated against that method's own settings class, so a key that the method would not
read is refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from synfoc3d.errors import UserError
from synfoc3d.files.home import expand_home
from synfoc3d.files.yaml_files import Kind, is_yaml_file, parse_yaml, preset_texts, read_yaml
from synfoc3d.optimizer_settings import Optimizers
from synfoc3d.sections import (
    LARGEST_IMAGE,
    AtLeastOne,
    BatchSize,
    Channel,
    Count,
    DataFacts,
    FoundationName,
    Interval,
    NonNegative,
    Section,
    Seed,
    merge,
    validate,
)

CONFIG_VARIABLE = "SYNFOC3D_CONFIG"
RANDOM = "random"  # value of foundation.checkpoint that starts any network from random weights, whatever is found
NO_ADAPTERS = "none"  # value of foundation.adapters that starts from new ones, whatever is found
EXTENDS = "extends"  # key of a settings file that names the one it builds on
SETTINGS_KIND = Kind("settings file", "preset", "a mapping of settings")

Precision = Literal["auto", "float32", "bfloat16", "float16"]
LoRATargets = Literal["qkv", "attention", "all"]
ArrangementName = Literal["slices", "canvas", "propagation"]


class MethodSettings(Section):
    """Settings that a training method reads; each method has its own subclass.

    Attributes:
        own_defaults: the other sections of the tree in which the method has defaults of its own, and their classes,
            which add no keys.
    """

    own_defaults: ClassVar[Mapping[str, type[Section]]] = {}


class FoundationSettings(Section):
    """The SAM-family network.

    Attributes:
        name: which network, with the weights it is known for.
        checkpoint: file of the base's weights, or a folder as transformers writes it; ``random`` for none; None takes
            what is published from the folder ``checkpoints`` of SYNFOC3D_HOME, and for ``compact`` the file inside this
            package, if it is there.
        lora: file of adapters, prompt encoder and mask decoder, as the released code of SAMed and SynFoC writes it; the
            student starts from it.
        image_size: side S of the square image the network sees, in pixels; None takes the network's default.
        arrangement: each of a patch's ``slices`` is an image, or all of them one large image, a ``canvas``; or, of ECT
            alone, masks are carried from slice to slice by ``propagation``. None is the method's, which is ``slices``
            except for CFR and ECT.
        carry: with ``propagation``: a slice is asked by its neighbor's mask, not by the point; None is true.
        class_tokens: with ``propagation``: every class has a trainable vector that is added to its prompts; None where
            there are several classes.
        adapters: with ``propagation``: file of adapters that the decoders start from; ``none`` for new ones; None takes
            those inside this package, if there are any for the network, its weights and the rank.
        lora_rank: rank of the adapters; 0 freezes the image encoder; None takes the network's default, which is 16 for
            the adapters of ``propagation`` in the decoders.
        lora_targets: which layers of the image encoder get adapters: ``qkv`` q and v of every attention, as published;
            ``attention`` the other linear layers of the blocks with attention, too; ``all`` also every 1x1 convolution;
            None takes the network's default.
        full_finetune: train every parameter, without adapters; None does so where no pre-trained weights are loaded,
            and where it is the network's default and no adapters are asked for.
        chunk: at most this many slices per call; 0 is no limit. Changes memory, not results. None is 0, unless a
            training on a CPU would have too little memory.
        checkpointing: recompute encoder activations in the backward pass. Changes memory, not results. None is false,
            with the same exception.
        channels: the three image channels shown as red, green, blue; None takes (0, 0, 0), (0, 1, 1) or (0, 1, 2).
        intensity: what maps to [0, 1]: the 0.5th to 99.5th percentile of the ``case`` or of the ``patch``, or a fixed
            (low, high) pair in units of the preprocessed image, low < high.
        seen: whether the network has seen the test data in its own training; None: judged by the dataset's name. It
            changes what is said of the figures, not the training.
    """

    name: FoundationName = "lite_medsam"
    checkpoint: str | None = None
    lora: str | None = None
    image_size: Annotated[int, Field(ge=32, le=LARGEST_IMAGE, multiple_of=16)] | None = None
    arrangement: ArrangementName | None = None
    carry: bool | None = None
    class_tokens: bool | None = None
    adapters: str | None = None
    lora_rank: Annotated[int, Field(ge=0, le=4096)] | None = None
    lora_targets: LoRATargets | None = None
    full_finetune: bool | None = None
    chunk: Count | None = None
    checkpointing: bool | None = None
    channels: tuple[Channel, Channel, Channel] | None = None
    intensity: Literal["case", "patch"] | tuple[float, float] = "case"
    seen: bool | None = None

    @field_validator("checkpoint", "lora", "adapters")
    @classmethod
    def _from_anywhere(cls, file: str | None) -> str | None:
        """Keep the absolute path, so that a later command finds the file from any folder."""
        return file if file in (None, RANDOM, NO_ADAPTERS) else str(expand_home(file).absolute())

    @field_validator("intensity", mode="wrap")
    @classmethod
    def _word_or_limits(cls, given: Any, take: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - pydantic's types
        """Refuse what is neither in one sentence; pydantic would complain about each alternative by itself."""
        with contextlib.suppress(ValidationError, OverflowError):
            taken = take(given)
            if isinstance(taken, str) or _differ_in_float32(*taken):
                return taken
        raise ValueError("Input should be 'case', 'patch' or two numbers [low, high] with low < high")


def _differ_in_float32(low: float, high: float) -> bool:
    """Check that two limits ascend in the format that images have.

    Raises:
        OverflowError: one is too large for it.
    """
    first, second = (struct.unpack("<f", struct.pack("<f", value))[0] for value in (low, high))
    return bool(first < second)


class ConventionalSettings(Section):
    """The nnU-Net network.

    Attributes:
        loss: labeled loss: ``nnunet`` (its Dice + CE with deep supervision) or ``paper`` (CE + squared Dice).
        deep_supervision: nnU-Net's auxiliary outputs at lower resolutions.
    """

    loss: Literal["nnunet", "paper"] = "nnunet"
    deep_supervision: bool = True


class AugmentationSettings(Section):
    """Weak and strong views.

    Attributes:
        brightness: range of the factor on the unit range [0, 1].
        contrast: range of the factor around the mean of each channel of the patch; for color images (channels called
            ``rgb_to_0_1``) around the mean of its gray image.
        blur: range of the Gaussian's standard deviation, in pixels of the foundation network's image.
        labeled_intensity: give the labeled stream nnU-Net's own intensity augmentation (off in the paper).
    """

    brightness: Interval = (0.1, 2.0)
    contrast: Interval = (0.1, 2.0)
    blur: Interval = (0.1, 2.0)
    labeled_intensity: bool = False


class SpeedSettings(Section):
    """Shortcuts of a training step: without one it takes more time or memory, and its results differ by rounding alone.

    Attributes:
        attention: SAM's ViTs attend without filled-up windows, see :mod:`synfoc3d.networks.encoders.vit_block`; false
            is segment-anything's own block.
        joint_calls: a student of SynFoC sees labeled and mixed samples in one call, unless it has batch norms.
        shared_teachers: teachers share the frozen weights of their students.
        kept_casts: mixed precision converts frozen weights once, not in every pass.
        merged_adapters: ECT folds the adapters of a decoder into its weights for a walk through a volume.
        cuda_graphs: a CUDA GPU starts the kernels of a network by itself, see :mod:`synfoc3d.networks.graphs`. It is
            not taken by default, as it was not yet seen in a whole training.
    """

    attention: bool = True
    joint_calls: bool = True
    shared_teachers: bool = True
    kept_casts: bool = True
    merged_adapters: bool = True
    cuda_graphs: bool = False


class Settings(Section):
    """Everything a training reads; a preset or a file is a partial copy of it.

    Attributes:
        epochs: number of epochs; 240 of 250 iterations are the 60,000 steps of SynFoC's paper.
        iterations_per_epoch: training steps per epoch.
        val_iterations_per_epoch: online validation batches per epoch.
        batch_size: labeled samples per step, and as many unlabeled ones; None takes the plans' batch size.
        seed: of weights, sampling and augmentation.
        precision: ``auto`` is mixed precision where the device is faster in it, float32 elsewhere.
        save_every_minutes: write checkpoint_latest.pth at the first epoch end after so many minutes.
    """

    epochs: AtLeastOne = 240
    iterations_per_epoch: AtLeastOne = 250
    val_iterations_per_epoch: AtLeastOne = 50
    batch_size: BatchSize | None = None
    seed: Seed = 1337
    precision: Precision = "auto"
    save_every_minutes: NonNegative = 10.0
    method: SerializeAsAny[MethodSettings] = MethodSettings()
    foundation: FoundationSettings = FoundationSettings()
    conventional: ConventionalSettings = ConventionalSettings()
    optimizers: Optimizers = Optimizers()
    augmentation: AugmentationSettings = AugmentationSettings()
    speed: SpeedSettings = SpeedSettings()


def resolve(
    given: Mapping[str, Any],
    method: type[MethodSettings],
    source: str = "the settings",
    data: DataFacts | None = None,
) -> Settings:
    """Validate a partial tree and fill in the defaults.

    Args:
        given: nested mapping of settings.
        method: class of the ``method`` section.
        source: file or preset named in the message of an error.
        data: the dataset to train on, whose labels and channels the settings may name; None where it is not known yet.

    Raises:
        UserError: for an unknown key, a wrong type or a value out of range; the sentence names the key.
    """
    tree = dict(given)
    for name, section in {"method": method, **method.own_defaults}.items():
        own = tree.get(name)
        tree[name] = validate(section, {} if own is None else own, source, name, data=data)
    return validate(Settings, tree, source, data=data)


PACKAGES = (
    "synfoc3d",
    "nnunetv2",
    "torch",
    "torchvision",
    "segment-anything",
    "timm",
    "batchgenerators",
    "batchgeneratorsv2",
    "numpy",
    "scipy",
)


def read_partial(name_or_file: str) -> dict[str, Any]:
    """Read a preset by name or a YAML file by path into a nested dict.

    A file may build on another one: ``extends: paper`` takes the settings of that preset (or of a YAML file, by its
    path from the folder of the file that says so), which the file's own then replace one by one.

    Raises:
        UserError: no such preset or file, not a YAML mapping, or files that extend each other in a circle.
    """
    return _read_extended(name_or_file, ())


def _read_extended(name_or_file: str, extending: tuple[str, ...]) -> dict[str, Any]:
    """Read a file and what it extends; ``extending`` are the files on the way to it."""
    if name_or_file in extending:
        raise UserError(f"The settings extend each other in a circle: {' -> '.join([*extending, name_or_file])}.")
    tree = read_yaml(name_or_file, preset_texts(), SETTINGS_KIND)
    base = tree.pop(EXTENDS, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{name_or_file}: {EXTENDS} must name a preset or a YAML file, but is {base!r}.")
    if is_yaml_file(base):
        base = os.path.normpath(Path(name_or_file).parent / base)
    return merge(_read_extended(base, (*extending, name_or_file)), tree)


def override(tree: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``key=value`` assignments (``foundation.chunk=8``) to a partial tree; values are read as YAML.

    Raises:
        UserError: an assignment without "=" or through something that is not a section.
    """
    result = _deep_copy(tree)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set needs key=value, for example foundation.chunk=8, but got {assignment!r}.")
        *sections, leaf = key.split(".")
        node = result
        for section in sections:
            node[section] = {} if node.get(section) is None else node[section]
            node = node[section]
            if not isinstance(node, dict):
                raise UserError(f"--set {assignment}: {section!r} is a value, not a section.")
        node[leaf] = _number_or_text(assignment, value)
    return result


def _number_or_text(assignment: str, value: str) -> Any:  # noqa: ANN401 - a YAML scalar or list
    """Read a YAML value; YAML 1.1 takes ``1e-4`` for text, which nobody means."""
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UserError(
            f"--set {assignment}: the value is no YAML ({error}); a list is written [1,2] without spaces."
        ) from None
    if isinstance(parsed, str):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def _deep_copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def from_environment(method: type[MethodSettings], data: DataFacts | None = None) -> Settings:
    """Return the settings named by the environment variable SYNFOC3D_CONFIG (a preset or a YAML file), or the defaults.

    Args:
        method: class of the ``method`` section.
        data: see :func:`resolve`.

    Raises:
        UserError: see :func:`read_partial` and :func:`resolve`.
    """
    source = os.environ.get(CONFIG_VARIABLE)
    if not source:
        return resolve({}, method, data=data)
    return resolve(read_partial(source), method, source, data)


def dump(tree: Mapping[str, Any]) -> str:
    """Render a partial tree as YAML text."""
    return yaml.safe_dump(dict(tree), sort_keys=False)


def to_yaml(settings: Settings, **facts: Any) -> str:  # noqa: ANN401 - plain values for the header section
    """Render resolved settings, package versions and further ``facts`` as YAML text."""
    document = {**facts, "versions": versions(), "settings": settings.model_dump(mode="json")}
    return dump(document)


def versions() -> dict[str, str]:
    """Return the installed versions of synfoc3d and of the packages that decide its results."""
    return {name: metadata.version(name) for name in PACKAGES}
