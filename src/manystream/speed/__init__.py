"""Where the time of a training step goes, and how far it is from what the machine can do."""
