"""What every typed settings tree is made of: sections and types of values, how trees are merged, what errors say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from synfoc3d.errors import UserError, did_you_mean

AnySection = TypeVar("AnySection", bound=BaseModel)

LONGEST = 200  # characters of a wrong value in a sentence

FoundationName = Literal[
    "lite_medsam",
    "compact",
    "mobile_sam",
    "sam_vit_b",
    "sam_vit_l",
    "sam_vit_h",
    "medsam_vit_b",
    "sam2.1_hiera_tiny",
    "sam2.1_hiera_small",
    "sam2.1_hiera_base_plus",
    "sam2.1_hiera_large",
    "medsam2",
]
"""Value of ``foundation.name``: a foundation network with the weights it is known for."""


class DataFacts(NamedTuple):
    """What a dataset says about the settings of a training.

    Attributes:
        num_classes: K, background included; of regions R.
        num_channels: C, channels of the input image.
        overlap: the classes are regions, which no label value stands for.
        patch_size: of the configuration, ([D,] H, W) voxels.
    """

    num_classes: int
    num_channels: int
    overlap: bool = False
    patch_size: tuple[int, ...] = (1, 1, 1)


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("Input should be [low, high] with low no larger than high")
    return interval


def _label_of_data(label: int, info: ValidationInfo) -> int:
    if isinstance(info.context, DataFacts) and info.context.overlap:
        raise ValueError("the dataset has regions, which are no label values; leave the setting out")
    if isinstance(info.context, DataFacts) and label >= info.context.num_classes:
        raise ValueError(f"Input should be at most {info.context.num_classes - 1}, the dataset's highest label")
    return label


def _channel_of_data(channel: int, info: ValidationInfo) -> int:
    if isinstance(info.context, DataFacts) and channel >= info.context.num_channels:
        raise ValueError(f"Input should be at most {info.context.num_channels - 1}, the dataset's last channel")
    return channel


LARGEST = 1_000_000  # beyond it lie slips of the finger and overflows, not settings
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
AtLeastOne = Annotated[int, Field(ge=1, le=LARGEST)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
LARGEST_IMAGE = 16384  # pixels: its attention alone would take a terabyte
Interval = Annotated[tuple[NonNegative, NonNegative], AfterValidator(_ascending)]
PositiveInterval = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**63 - 1)]  # numpy takes none below, torch none far above
# These two know their upper bound when a training starts, see `validate`: a method has them checked by naming them.
Label = Annotated[int, Field(ge=1), AfterValidator(_label_of_data)]
Channel = Annotated[int, Field(ge=0), AfterValidator(_channel_of_data)]


class Section(BaseModel):
    """A frozen part of a settings tree that refuses unknown keys, numbers that are not finite and booleans for numbers.

    A section without values within it is the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_and_filled(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        if not isinstance(given, Mapping):
            return given
        for key in given:
            if key not in cls.model_fields:
                raise ValueError(f"unknown setting {key!r}.{did_you_mean(str(key), cls.model_fields)}")
        return {key: value for key, value in given.items() if value is not None or not cls._is_section(key)}

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_boolean_for_a_number(cls, given: Any, take: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - see above
        taken = take(given)
        if _became_number(given, taken):
            raise ValueError("Input should be a number, not a boolean")
        return taken

    @classmethod
    def _is_section(cls, key: str) -> bool:
        kind = cls.model_fields[key].annotation
        # in Python 3.10 list[int] counts as a type, too
        return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Section)


def _became_number(given: Any, taken: Any) -> bool:  # noqa: ANN401 - value before and after validation
    """Return whether pydantic took a boolean, maybe one in a list or mapping, for 0 or 1."""
    if isinstance(given, bool):
        return not isinstance(taken, bool)
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        return any(_became_number(value, taken.get(key)) for key, value in given.items())
    if isinstance(given, (list, tuple)) and isinstance(taken, tuple):
        return any(map(_became_number, given, taken))
    return False


def validate(
    section: type[AnySection],
    given: Any,  # noqa: ANN401 - whatever the user wrote
    source: str,
    *within: str,
    data: DataFacts | None = None,
) -> AnySection:
    """Check a partial tree and fill in the defaults.

    Args:
        section: class of the whole tree, or of the part of it that is given.
        given: what the user wrote, a nested mapping if all is well.
        source: file or preset, named in the message of an error.
        within: keys that lead from the root of the tree to the part.
        data: the dataset that labels and channels must belong to; None where it is not known yet.

    Raises:
        UserError: an unknown key, a wrong type or a value that is not allowed; the sentence names the key.
    """
    try:
        return section.model_validate(given, context=data)
    except ValidationError as error:
        first = error.errors()[0]
    where = ".".join(str(part) for part in (*within, *first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    # what is wrong with a whole section is said in the reason
    whole = first["type"] in ("missing", "value_error") and isinstance(first["input"], Mapping)
    got = "" if whole else f" (got {_short(first['input'])})"
    raise UserError(f"{source}: {f'{where}: ' if where else ''}{reason}{got}")


def _short(given: Any) -> str:  # noqa: ANN401 - whatever was given
    """Write what was given, the middle of what is long left out."""
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a partial tree with its values replaced one by one; a section without values changes nothing.

    Sections are the mappings in ``base``, so that this holds for every tree and for sections at any depth.
    """
    merged = dict(base)
    for key, value in changes.items():
        if not isinstance(merged.get(key), Mapping):
            merged[key] = value
        elif value is not None:
            merged[key] = merge(merged[key], value) if isinstance(value, Mapping) else value
    return merged


def differences(first: Section, second: Section, prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two resolved trees."""
    keys = []
    for name in type(first).model_fields:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, Section) and type(a) is type(b):
            keys += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            keys.append(prefix + name)
    return keys
