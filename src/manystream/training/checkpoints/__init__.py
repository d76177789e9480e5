"""A run on disk: checkpoints that are atomic and verified, and going on after a cut."""
