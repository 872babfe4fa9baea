"""Train, compress, ensemble and serve models from one typed YAML file on Ray."""

__version__ = "0.1.0"
