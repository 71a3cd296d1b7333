"""What the record beside masks says of the prompt that a network was asked with: figures are only as good as that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import PREDICTION_FILE
from synfoc3d.networks.prompts import CENTER


@dataclass(frozen=True)
class PromptRecord:
    """A prompt, as synfoc3d_predict.json names it.

    Attributes:
        name: one of `synfoc3d.networks.prompts.PROMPTS`.
        file: of the user's points or boxes.
        sha256: of that file.
        references: folder of the masks that points or boxes were taken from.
        untrained: name of the published network that was asked, where it was not trained.
    """

    name: str
    file: str | None = None
    sha256: str | None = None
    references: str | None = None
    untrained: str | None = None

    def as_json(self) -> dict[str, str]:
        """Return what is known as JSON's types."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What two equal prompts have in common; where a file lies, or who was asked, does not matter."""
        return self.name, self.sha256, self.references

    def __str__(self) -> str:
        """Return it as tables and sentences name it."""
        source = f"{Path(self.file).name}, SHA-256 {(self.sha256 or '')[:12]}" if self.file else self.references
        asked = f"{self.name} ({source})" if source else self.name
        return f"{asked}, {self.untrained} without training" if self.untrained else asked


def parse_prompt(said: Mapping[str, Any]) -> PromptRecord | None:
    """Return the prompt that the content of a synfoc3d_predict.json names; None where it names none."""
    content = said.get("prompt")
    if not isinstance(content, Mapping) or not isinstance(content.get("name"), str):
        return None
    known = {key: content[key] for key in PromptRecord.__dataclass_fields__ if isinstance(content.get(key), str)}
    if isinstance(said.get("untrained"), str):
        known["untrained"] = said["untrained"]
    return PromptRecord(**known)


def read_prompt(folder: Path) -> PromptRecord | None:
    """Return the prompt with which the masks of a folder were made; None where no readable record names one."""
    try:
        return parse_prompt(parse_json((folder / PREDICTION_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


def prompt_note(prompts: Mapping[str, PromptRecord | None]) -> str:
    """Return how models were asked as a sentence; "" where none takes a prompt.

    Args:
        prompts: by model; None of one without.
    """
    asked = [f"{model}: {prompt}" for model, prompt in prompts.items() if prompt]
    return f"Prompts: {'; '.join(asked)}." if asked else ""


def prompt_marks(prompts: Mapping[str, PromptRecord | None]) -> tuple[str, ...]:
    """Return the sentence that models were asked with prompts whose figures cannot be compared; none where they can.

    A network that takes no prompt and one asked in the center know as much of the case: nothing.

    Args:
        prompts: by model; None of one without.
    """
    automatic = PromptRecord(CENTER).identity
    if len({prompt.identity if prompt else automatic for prompt in prompts.values()}) < 2:
        return ()
    asked = ", ".join(f"{model}: {prompt or 'none'}" for model, prompt in prompts.items())
    return (f"Models that were asked with different prompts are not comparable ({asked}).",)
