"""Where the parts of a run come from: its folder, the pretrained pair, results of its own and of other runs."""

from functools import cached_property
from importlib.resources import files
from pathlib import Path

from davae.backbones.pair import Pair
from davae.models.loading import autoencoder_folder
from davae.models.saving import verify
from davae.recipe import Recipe
from davae.run.paths import RunFolder

EMBEDDED = "embedded"
_VERBS = {"tokenizer": "train-tokenizer"}


class Origins:
    """What a recipe names, found on disk or on the hub; nothing is loaded but configs.

    Args:
        recipe: that names it.
        runs_dir: folder of all runs; this one lives in `runs_dir / recipe.name`.
    """

    def __init__(self, recipe: Recipe, runs_dir: Path = Path("runs")) -> None:
        self.recipe = recipe
        self.folder = RunFolder(runs_dir / recipe.name, recipe.has("prompts"))

    @property
    def pair_source(self) -> str:
        """Folder of the pretrained pair, or its name on the hub."""
        if self.recipe.pretrain is not None:
            return str(self.folder.base_pair)
        return str(embedded_pair()) if self.recipe.pair == EMBEDDED else self.recipe.pair

    @cached_property
    def pair(self) -> Pair:
        """The pretrained pair that this run upgrades."""
        return Pair(self.pair_source)

    @cached_property
    def base_path(self) -> Path:
        """Folder of the pair's autoencoder. A pair may be nothing but an autoencoder; one on the hub is fetched."""
        return autoencoder_folder(self.pair_source)

    def result(self, section: str) -> Path:
        """Folder of a section's result, in this run or the one it is taken from.

        Raises:
            FileNotFoundError: it is not there; the text says what to run.
            ValueError: its weights are damaged.
        """
        is_taken = section in self.recipe.reuse
        root = Path(self.recipe.reuse[section]) if is_taken else self.folder.root
        folder = RunFolder(root, self.folder.is_text)
        path = {
            "tokenizer": folder.tokenizer,
            "cache": folder.latents(),
            "prompts": folder.prompts(),
            "finetune": folder.finetuned(),
        }[section]
        if path.exists():
            return verify(path)
        if is_taken:
            raise FileNotFoundError(
                f"Section {section} takes its result from {root}, which has no {path.name}/. "
                f"Finish that run first, or correct the path."
            )
        verb = _VERBS.get(section, section)
        raise FileNotFoundError(f"There is no {path.name}/ in {root} yet. Run 'davae {verb} RECIPE' first.")

    def finetuned(self) -> Path:
        """Folder of what the last round of fine-tuning left.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.result("finetune")
        if self.recipe.realism is None:
            return path
        path = self.folder.finetuned("realism")
        if not path.exists():
            raise FileNotFoundError(f"There is no {path} yet. Run 'davae finetune RECIPE' first.")
        return verify(path)


def embedded_pair() -> Path:
    """Folder of the pair that comes with the package."""
    return Path(str(files("davae") / "pair"))
