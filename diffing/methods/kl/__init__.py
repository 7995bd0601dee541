"""KL divergence between the next-token distributions of both sides."""

from diffing.methods.kl.method import KLDivergence

__all__ = ["KLDivergence"]
