"""Of which scan a mask was made, as files in a folder say it; whole predictions: test_predict.py."""

import os

from synfoc3d.files.origins import scan_facts
from synfoc3d.inference.inputs import Job
from synfoc3d.inference.made_of import is_replaced, note_scan


def test_channels_that_change_places_are_another_scan(tmp_path):
    files = tuple(tmp_path / f"a_000{channel}.nii.gz" for channel in range(2))
    for file in files:
        file.write_text(file.name)
    job = Job("a", files, tmp_path / "a")
    job.mask.touch()
    note_scan(job, [*map(scan_facts, files)])
    assert not is_replaced(job)
    files[0].rename(tmp_path / "aside")
    files[1].rename(files[0])
    (tmp_path / "aside").rename(files[1])
    assert is_replaced(job)


def test_spacing_beside_a_tif_is_a_part_of_it(tmp_path):
    file, spacing = tmp_path / "a_0000.tif", tmp_path / "a.json"
    file.write_text("voxels")
    spacing.write_text("1")
    job = Job("a", (file,), tmp_path / "a", ".tif")
    job.mask.touch()
    note_scan(job, [scan_facts(file)])
    spacing.write_text("2")
    os.utime(spacing, ns=(0, 0))
    assert is_replaced(job)
