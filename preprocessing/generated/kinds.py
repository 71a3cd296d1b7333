"""The kinds of labels that generated scans can have; light to import, for the command's help."""

KINDS = {
    "plain": "every voxel has one class",
    "regions": "the same voxels declared as nested regions",
    "sparse": "scribbles, every other voxel is ignored",
    "partial": "one class annotated in each labeled case, in turn",
}
