"""The pair, where activations live, and generation."""
