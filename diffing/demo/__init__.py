"""Tiny model organisms that ship with the package: their texts, their training, and their LoRA adapters."""
