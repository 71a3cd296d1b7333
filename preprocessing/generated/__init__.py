"""Generated scans: anatomy, scanners, and the datasets made of them."""
