"""The surgery written down: a recipe that does the same to a fresh instance, and the directory it is kept in."""

from ._files import load_regbn, save_regbn
from ._recipe import Recipe

__all__ = ["Recipe", "load_regbn", "save_regbn"]
