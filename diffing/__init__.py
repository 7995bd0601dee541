"""Model diffing: find out what a finetune changed. Importing this package loads no model library."""

__version__ = "0.1.0"
