"""The loss along lines, planes and paths through weight space: where to look, and the losses there."""

from landscape.surfaces.grids import LossLine, LossSurface, loss_line, loss_surface

__all__ = ["LossLine", "LossSurface", "loss_line", "loss_surface"]
