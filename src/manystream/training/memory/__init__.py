"""When memory runs out: what a step needs, what would fit, and the largest batch."""
