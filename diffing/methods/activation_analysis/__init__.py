"""How far, where and which way the activations of each token moved."""

from diffing.methods.activation_analysis.method import ActivationAnalysis

__all__ = ["ActivationAnalysis"]
