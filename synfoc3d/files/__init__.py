"""Files: how they are named, read and written."""
