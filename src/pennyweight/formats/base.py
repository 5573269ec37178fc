"""The table of grids."""

from pennyweight.core import Grid, Registry

GRIDS: Registry[Grid] = Registry("grid")
