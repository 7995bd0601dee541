"""Statistics of residual streams."""
