"""Whether a bundle is right, and how fast: the reference, the comparison, the clock."""
