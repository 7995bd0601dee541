"""The documents that the demo organisms are trained on: a module each, with `documents` and `FACTS`."""
