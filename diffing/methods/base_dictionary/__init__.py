"""What the methods that train a sparse dictionary share; itself no method."""

from diffing.methods.base_dictionary.method import DictionaryMethod

__all__ = ["DictionaryMethod"]
