"""Known foundation networks: their published weight files, where a person gets them, and where they are looked for.

Nothing here imports torch, so that ``synfoc3d doctor`` stays instant. Nothing is ever downloaded.
"""

import hashlib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from synfoc3d.config import RANDOM
from synfoc3d.errors import UserError, did_you_mean

HOME_VARIABLE = "SYNFOC3D_HOME"

CHUNK = 2**20  # bytes read at a time
SAM_SOURCE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
SAM_INPUT = "0..255, minus ImageNet's mean, over its standard deviation"


@dataclass(frozen=True)
class KnownNetwork:
    """A foundation network and the file its weights are published in.

    Attributes:
        name: value of ``foundation.name``.
        architecture: key of ``synfoc3d.networks.foundation.ARCHITECTURES``.
        file: name of the file as published.
        source: where a person gets it.
        license: of the weights, as their authors state it; read it there before use.
        published_input: range of the images the published network was trained on. This package shows every network
            images in [0, 1] without mean and standard deviation, as SynFoC's and SAMed's released code do with SAM's
            and MedSAM's weights alike; fine-tuning absorbs the difference.
        hash_algorithm: ``sha256``, or ``md5`` where nothing else is published.
        published_hash: hexadecimal digits; None where none is published.
    """

    name: str
    architecture: str
    file: str
    source: str
    license: str
    published_input: str
    hash_algorithm: str = "sha256"
    published_hash: str | None = None


def _sam(architecture: str, file: str, sha256: str) -> KnownNetwork:
    """Describe one of the three networks of "Segment Anything" (ICCV 2023)."""
    return KnownNetwork(
        f"sam_{architecture}", architecture, file, SAM_SOURCE, "Apache-2.0", SAM_INPUT, "sha256", sha256
    )


# The six digits in the names of SAM's files begin their MD5, not their SHA-256. Of MedSAM only an MD5 is published.
KNOWN: dict[str, KnownNetwork] = {
    network.name: network
    for network in (
        KnownNetwork("lite_medsam", "lite_medsam", "lite_medsam.pth", "TODO", "Apache-2.0", "0..1"),
        KnownNetwork("mobile_sam", "mobile_sam", "mobile_sam.pt", "TODO", "Apache-2.0", SAM_INPUT),
        KnownNetwork("compact", "compact", "compact.pth", "this package", "Apache-2.0", "0..1"),
        _sam("vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _sam("vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _sam("vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        KnownNetwork(
            "medsam_vit_b",
            "vit_b",
            "medsam_vit_b.pth",
            "https://github.com/bowang-lab/MedSAM or https://zenodo.org/records/10689643",
            "Apache-2.0 (the copy at Zenodo: CC-BY-4.0)",
            "0..1",
            "md5",
            "3bb6db55bd0c9ca30b61248bca72f8d6",
        ),
    )
}


def known_network(name: str) -> KnownNetwork:
    """Return the entry of a name.

    Raises:
        UserError: no foundation network is called so.
    """
    if name not in KNOWN:
        raise UserError(f"Unknown foundation network {name!r}.{did_you_mean(name, KNOWN)}")
    return KNOWN[name]


def home_folder() -> Path:
    """Return the folder of this package's files on the machine: SYNFOC3D_HOME, or ``~/.synfoc3d``."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".synfoc3d").expanduser().absolute()


def checkpoint_folder() -> Path:
    """Return where published weight files are looked for by their name."""
    return home_folder() / "checkpoints"


def embedded_weights() -> Path | None:
    """Find the weight file of the compact network that ships inside this package; None where there is none."""
    file = Path(str(resources.files("synfoc3d.networks.weights"))) / "compact" / KNOWN["compact"].file
    return file if file.is_file() else None


def find_checkpoint(name: str, given: str | None) -> Path | None:
    """Find the file a network's base weights come from.

    Args:
        name: of a known network.
        given: the setting ``foundation.checkpoint``: a file, which always wins; ``random``; or None, to look for the
            published file in :func:`checkpoint_folder`, and for the compact network inside this package.

    Returns:
        The file, which need not exist if it was given; None for random weights: asked for, or a compact network
        without embedded file.

    Raises:
        UserError: unknown name, or the published file is not there.
    """
    known = known_network(name)
    if given is not None:
        return None if given == RANDOM else Path(given)
    if known.architecture == "compact":
        return embedded_weights()
    file = checkpoint_folder() / known.file
    if not file.is_file():
        raise UserError(
            f"The foundation network {name} needs its published weights: get {known.file} from {known.source} and put "
            f"it into {file.parent}, or name the file with --set foundation.checkpoint=FILE."
        )
    return file


def file_hash(file: Path, algorithm: str = "sha256") -> str:
    """Hash a file, read in parts, to hexadecimal digits; ``md5`` recognizes a published file, it secures nothing."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while part := stream.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def hash_problem(known: KnownNetwork, file: Path, sha256: str) -> str | None:
    """Say that a file is not the published one; None where it is, or where no hash is published.

    Args:
        known: the network the file is taken for.
        file: its weights.
        sha256: of that file, as it is known already.
    """
    if known.published_hash is None:
        return None
    algorithm = known.hash_algorithm
    found = sha256 if algorithm == "sha256" else file_hash(file, algorithm)
    if found == known.published_hash:
        return None
    return f"is not {known.file} as published: its {algorithm} is {found}, not {known.published_hash}"


def network_of_file(name: str, sha256: str) -> KnownNetwork | None:
    """Recognize whose published file this is, by its SHA-256 or else by its name; None for any other file."""
    by_hash = [known for known in KNOWN.values() if known.published_hash == sha256]
    by_name = [known for known in KNOWN.values() if known.file == name]
    return next(iter(by_hash + by_name), None)
