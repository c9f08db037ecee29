"""The two rounds of fine-tuning: a run's own, and a second one on other images that goes on from its result."""

from dataclasses import dataclass
from pathlib import Path

from davae.data.image_source import ImageSource
from davae.recipe import FinetuneConfig
from davae.run.paths import RoundName, RunFolder
from davae.run.run import Run

_OTHER_SEED = 1_000_003


@dataclass(frozen=True)
class Round:
    """One round of a run's fine-tuning."""

    run: Run
    name: RoundName = "finetune"

    @property
    def is_second(self) -> bool:
        """Whether it goes on from the first one's result."""
        return self.name == "realism"

    @property
    def config(self) -> FinetuneConfig:
        """Its settings."""
        config = self.run.recipe.realism if self.is_second else self.run.recipe.finetune
        assert config is not None
        return config

    @property
    def seed(self) -> int:
        """Of its random draws; the second round does not repeat those of the first."""
        return self.run.recipe.seed + (_OTHER_SEED if self.is_second else 0)

    @property
    def source(self) -> ImageSource:
        """Its images."""
        return self.run.data.realism if self.is_second else self.run.data.finetune

    @property
    def latents(self) -> Path:
        """Folder of its latent cache."""
        return self.run.folder.latents("realism") if self.is_second else self.run.result("cache")

    @property
    def prompts(self) -> Path:
        """Folder of its prompt cache."""
        return self.run.folder.prompts("realism") if self.is_second else self.run.result("prompts")

    @property
    def start(self) -> Path | None:
        """What an earlier training left, from which it starts; None for the pretrained pair, widened.

        Raises:
            FileNotFoundError: the earlier training left nothing there.
        """
        if self.is_second:
            return self.run.result("finetune")
        if self.config.start is None:
            return None
        path = RunFolder(Path(self.config.start), self.run.folder.is_text).finetuned()
        if not path.is_dir():
            raise FileNotFoundError(
                f"finetune.start names {self.config.start}, which has no {path.name}/. Finish that run first, or "
                f"correct the path."
            )
        return path


def rounds_of(run: Run) -> list[Round]:
    """The rounds of a recipe that fine-tunes, in order."""
    names: list[RoundName] = ["finetune"] if run.recipe.realism is None else ["finetune", "realism"]
    return [Round(run, name) for name in names]
