"""Agents that guess a finetune from reports alone, on Inspect AI, and how their guesses are graded.

Imports no model library: an agent's process needs none.
"""
