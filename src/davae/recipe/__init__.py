"""A recipe: one YAML file, one whole run, validated before anything is computed."""

from davae.caching.settings import CacheConfig, PromptsConfig
from davae.recipe.changes import merge_overrides
from davae.recipe.document import dump_recipe, load_recipe, parse_recipe, read_recipe, validated
from davae.recipe.errors import RecipeError
from davae.recipe.find import run_folder, shipped_recipes
from davae.recipe.recipe import GIVEN_AUTOENCODER, REUSABLE, Recipe
from davae.recipe.sections import (
    BaseAutoencoderConfig,
    BaseTransformerConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    PreviewConfig,
    RealismConfig,
    SampleConfig,
)
from davae.train.judge_settings import JudgeConfig
from davae.train.objective import TokenizerConfig

__all__ = [
    "BaseAutoencoderConfig",
    "BaseTransformerConfig",
    "CacheConfig",
    "DataConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "GIVEN_AUTOENCODER",
    "JudgeConfig",
    "PretrainConfig",
    "PreviewConfig",
    "PromptsConfig",
    "REUSABLE",
    "RealismConfig",
    "Recipe",
    "RecipeError",
    "SampleConfig",
    "TokenizerConfig",
    "dump_recipe",
    "load_recipe",
    "merge_overrides",
    "parse_recipe",
    "read_recipe",
    "run_folder",
    "shipped_recipes",
    "validated",
]
