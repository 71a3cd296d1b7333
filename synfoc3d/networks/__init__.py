"""Foundation networks of the SAM family, run slice by slice, and their teachers."""
