"""The typed settings of a pre-training; ``configs/pretrain.yaml`` is a partial copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from synfoc3d.config import Precision
from synfoc3d.sections import Interval, NonNegative, Positive, PositiveInterval, Section, Seed, validate

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


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

    organs: AtLeastOne = 8
    compartments: Count = 3
    clutter: Count = 6
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

    prompts_per_image: AtLeastOne = 2
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


class PretrainSettings(Section):
    """Everything a pre-training reads.

    Attributes:
        steps: number of training steps.
        batch_size: anatomies per step; each gives two images.
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
    batch_size: AtLeastOne = 8
    image_size: Annotated[int, Field(ge=32, multiple_of=16)] = 128
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
    objective: ObjectiveSettings = ObjectiveSettings()

    @model_validator(mode="after")
    def _pixels_fit_into_the_image(self) -> PretrainSettings:
        if self.rendering.coarseness[1] > self.image_size:
            raise ValueError(
                f"rendering.coarseness: pixels of {self.rendering.coarseness[1]:g} do not fit into an image of "
                f"image_size={self.image_size}"
            )
        return self


def resolve_pretraining(given: Mapping[str, Any], source: str = "the settings") -> PretrainSettings:
    """Validate a partial tree and fill in the defaults.

    Args:
        given: nested mapping of settings.
        source: file or preset named in the message of an error.

    Raises:
        UserError: for an unknown key, a wrong type or a value out of range; the sentence names the key.
    """
    return validate(PretrainSettings, given, source)
