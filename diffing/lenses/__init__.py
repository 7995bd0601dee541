"""Instruments that methods share: tensors in, readings out."""
