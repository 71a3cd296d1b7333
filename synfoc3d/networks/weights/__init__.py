"""Weight files of foundation networks: what is known of them, how they are found and read."""
