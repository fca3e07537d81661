"""A plug-in for ccnn: what its entry points name is all that ccnn knows of it."""

from importlib.resources import files

MACHINE = files("ccnn_toy") / "toy.yaml"
