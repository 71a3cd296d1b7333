"""The typed settings of a pre-training; ``configs/pretrain.yaml`` is a partial copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from synfoc3d.config import Precision
from synfoc3d.sections import (
    LARGEST_IMAGE,
    AtLeastOne,
    BatchSize,
    Count,
    FoundationName,
    Interval,
    NonNegative,
    Positive,
    PositiveInterval,
    Section,
    Seed,
    validate,
)

Share = Annotated[float, Field(ge=0, le=1)]
MOST_SHAPES = 1000  # in one image


class ShapeSettings(Section):
    """The generated anatomy. Lengths are in units of half the image side.

    Attributes:
        organs: structures that lie in the body, in every anatomy.
        compartments: large structures behind them.
        clutter: small unlabeled things that differ from image to image.
        body_radius: range of the body's mean radius; beyond about 1.3 it fills the image.
        compartment_radius: range of the compartments' mean radius.
        organ_radius: range of the organs' mean radius.
        clutter_radius: range of the clutter's mean radius.
        nested: share of organs that lie in the one before, which leaves a ring of that.
        touching: share of organs that lie against the one before; with ``nested`` at most 1.
        absent_organs: share of organs that an anatomy lacks.
        empty_slices: share of images without any organ.
        variation: standard deviation of relative sizes between two bodies of one anatomy; positions and angles follow.
        deformation: standard deviation of the smooth displacement.
    """

    organs: Annotated[int, Field(ge=1, le=MOST_SHAPES)] = 8
    compartments: Annotated[int, Field(ge=0, le=MOST_SHAPES)] = 3
    clutter: Annotated[int, Field(ge=0, le=MOST_SHAPES)] = 6
    body_radius: PositiveInterval = (0.7, 1.5)
    compartment_radius: PositiveInterval = (0.2, 0.7)
    organ_radius: PositiveInterval = (0.06, 0.4)
    clutter_radius: PositiveInterval = (0.02, 0.15)
    nested: Share = 0.35
    touching: Share = 0.35
    absent_organs: Share = 0.3
    empty_slices: Share = 0.03
    variation: NonNegative = 0.12
    deformation: NonNegative = 0.05

    @model_validator(mode="after")
    def _shares_of_the_same_organs(self) -> ShapeSettings:
        if self.nested + self.touching > 1:
            raise ValueError(f"nested and touching share the organs, but add up to {self.nested + self.touching:g} > 1")
        return self


class RenderingSettings(Section):
    """How label maps become images; ranges are uniform.

    Attributes:
        same_scanner: share of sibling pairs rendered with nearly the same tissue intensities.
        equal_tissues: share of tissues that are as bright as another one.
        dark_outside: share of images that are black around the body.
        texture: range of the standard deviation of a tissue's texture.
        blur: range of the Gaussian's standard deviation, in pixels of a 128-pixel image.
        coarseness: range of the number of pixels that one acquired pixel spans.
        bias: range of the standard deviation of the logarithm of the bias field.
        noise: range of the standard deviation of the noise.
        gamma: range of the exponent, on a logarithmic scale.
    """

    same_scanner: Share = 0.5
    equal_tissues: Share = 0.2
    dark_outside: Share = 0.5
    texture: Interval = (0.0, 0.12)
    blur: Interval = (0.3, 1.6)
    coarseness: PositiveInterval = (1.0, 3.0)
    bias: Interval = (0.0, 0.3)
    noise: Interval = (0.0, 0.1)
    gamma: PositiveInterval = (0.7, 1.4)


class ObjectiveSettings(Section):
    """What the network must do.

    Attributes:
        prompts_per_image: structures that are asked for by prompts, per image.
        boxes: share of steps that prompt with boxes; the others with points.
        box_jitter: standard deviation of a box's sides, as a share of the box.
        temperature: of the similarities of the dense objective.
        prompted: weight of the prompted loss.
        dense: weight of the prompt-free loss.
    """

    prompts_per_image: Annotated[int, Field(ge=1, le=MOST_SHAPES)] = 2
    boxes: Share = 0.7
    box_jitter: NonNegative = 0.05
    temperature: Positive = 0.1
    prompted: NonNegative = 1.0
    dense: NonNegative = 1.0

    @model_validator(mode="after")
    def _has_a_loss(self) -> ObjectiveSettings:
        if not self.prompted and not self.dense:
            raise ValueError("prompted and dense are both 0, which leaves nothing to learn")
        return self


class RunSettings(Section):
    """What every pre-training reads, whatever its objective.

    Attributes:
        steps: number of training steps.
        batch_size: bodies per step.
        image_size: side of the images in pixels.
        lr: learning rate of AdamW after the warm-up.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from 0.
        ema_decay: of the average of the weights, which is what is validated and shipped.
        seed: of weights and images; validation images come from seed + 1.
        precision: ``auto`` is mixed precision where the device is faster in it, float32 elsewhere.
        validation_batches: fixed batches of the validation loss.
        validate_every: steps between validations.
        save_every_minutes: between checkpoints.
    """

    steps: AtLeastOne = 20000
    batch_size: BatchSize = 8
    image_size: Annotated[int, Field(ge=32, le=LARGEST_IMAGE, multiple_of=16)] = 128
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    warmup_steps: Count = 200
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    seed: Seed = 1337
    precision: Precision = "auto"
    validation_batches: AtLeastOne = 8
    validate_every: AtLeastOne = 100
    save_every_minutes: NonNegative = 1.0
    shapes: ShapeSettings = ShapeSettings()
    rendering: RenderingSettings = RenderingSettings()

    @model_validator(mode="after")
    def _pixels_fit_into_the_image(self) -> RunSettings:
        if self.rendering.coarseness[1] > self.image_size:
            raise ValueError(
                f"rendering.coarseness: pixels of {self.rendering.coarseness[1]:g} do not fit into an image of "
                f"image_size={self.image_size}"
            )
        return self


class PretrainSettings(RunSettings):
    """Everything the pre-training of the compact network reads: objective ``structures``.

    Attributes:
        objective: what the network must do; each of the ``batch_size`` anatomies gives two images.
    """

    objective: ObjectiveSettings = ObjectiveSettings()


class StackSettings(Section):
    """How the neighboring slices of a generated body differ. Thickness and place are in units of a slice.

    Attributes:
        slices: of a body.
        change: range, over bodies, of the standard deviation by which an outline changes from slice to slice: sizes
            relatively, positions as a share of the outline's size, angles in radians.
        deformation: range of the standard deviation of the change of the smooth displacement, as a share of it.
        thickness: range of half the thickness of organs, compartments and clutter, on a logarithmic scale; they end
            round, as ellipsoids do, and are absent beyond.
    """

    slices: Annotated[int, Field(ge=2, le=1000)] = 4
    change: Interval = (0.0, 0.15)
    deformation: Interval = (0.0, 0.3)
    thickness: PositiveInterval = (1.0, 12.0)


class CarryingSettings(Section):
    """What the decoder must do.

    Attributes:
        structures_per_body: how many are asked for in each body.
        known_start: share of steps that start from the true mask of the start slice.
        boxes: share of steps that start from a box; with ``known_start`` at most 1. The others start from a point.
        box_jitter: standard deviation of a box's sides, as a share of the box.
        focal_weight: weight of the focal loss.
        dice_weight: weight of the Dice loss.
    """

    structures_per_body: AtLeastOne = 4
    known_start: Share = 0.4
    boxes: Share = 0.2
    box_jitter: NonNegative = 0.05
    focal_weight: NonNegative = 1.0
    dice_weight: NonNegative = 20.0

    @model_validator(mode="after")
    def _has_a_loss(self) -> CarryingSettings:
        if not self.focal_weight and not self.dice_weight:
            raise ValueError("focal_weight and dice_weight are both 0, which leaves nothing to learn")
        return self

    @model_validator(mode="after")
    def _shares_of_the_same_steps(self) -> CarryingSettings:
        if self.known_start + self.boxes > 1:
            raise ValueError(
                f"known_start and boxes share the steps, but add up to {self.known_start + self.boxes:g} > 1"
            )
        return self


class PropagationSettings(RunSettings):
    """Everything the warm-up of a decoder's adapters reads: objective ``propagation``.

    Attributes:
        network: whose decoder is adapted; a ``foundation.name``.
        checkpoint: file of the network's weights, as ``foundation.checkpoint``.
        rank: of the adapters.
        stack: how neighboring slices differ.
        objective: what the decoder must do.
    """

    steps: AtLeastOne = 2000
    batch_size: AtLeastOne = 2
    weight_decay: NonNegative = 0.01
    warmup_steps: Count = 50
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    network: FoundationName = "lite_medsam"
    checkpoint: str | None = None
    rank: AtLeastOne = 16
    stack: StackSettings = StackSettings()
    objective: CarryingSettings = CarryingSettings()


STRUCTURES, PROPAGATION = "structures", "propagation"
SETTINGS: dict[str, type[RunSettings]] = {STRUCTURES: PretrainSettings, PROPAGATION: PropagationSettings}
"""The settings of each objective, by its name on the command line."""


def resolve_pretraining(
    given: Mapping[str, Any], source: str = "the settings", objective: str = STRUCTURES
) -> RunSettings:
    """Validate a partial tree and fill in the defaults.

    Args:
        given: nested mapping of settings.
        source: file or preset named in the message of an error.
        objective: a key of ``SETTINGS``.

    Raises:
        UserError: for an unknown key, a wrong type or a value out of range; the sentence names the key.
    """
    return validate(SETTINGS[objective], given, source)
