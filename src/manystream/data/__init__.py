"""Sources of labelled samples, and how they become compact batches."""
