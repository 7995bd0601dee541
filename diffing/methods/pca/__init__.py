"""Principal components of the activation differences."""

from diffing.methods.pca.method import PrincipalComponents

__all__ = ["PrincipalComponents"]
