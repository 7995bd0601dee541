"""Text on its way to a model: corpora, chat templates, token windows."""
