"""Activation Difference Lens (arXiv 2510.13900)."""

from diffing.methods.activation_difference_lens.method import ActivationDifferenceLens

__all__ = ["ActivationDifferenceLens"]
