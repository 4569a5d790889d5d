"""Recipes: what to run, validated at once, written back with every default."""

from alignkit.recipe.errors import RecipeError
from alignkit.recipe.evaluation import Evaluation
from alignkit.recipe.model import Recipe
from alignkit.recipe.training import RECIPE_DEFAULTS, EarlyStopping

__all__ = ["RECIPE_DEFAULTS", "EarlyStopping", "Evaluation", "Recipe", "RecipeError"]
