"""Image encoders of the SAM family behind one small interface."""
