"""A fine-tuning of a run: its own, or the second one on other images, with the folders of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from davae.data.source import ImageSource
from davae.recipe import FinetuneConfig
from davae.stages.run import Run

PhaseName = Literal["finetune", "realism"]


@dataclass(frozen=True)
class Phase:
    """One of a run's fine-tunings."""

    run: Run
    name: PhaseName

    @property
    def is_second(self) -> bool:
        """Whether it goes on from the other one's result."""
        return self.name == "realism"

    @property
    def config(self) -> FinetuneConfig:
        """Its settings."""
        config = self.run.recipe.realism if self.is_second else self.run.recipe.finetune
        assert config is not None
        return config

    @property
    def seed(self) -> int:
        """Of its random draws; the second one does not repeat those of the first."""
        return self.run.recipe.seed + (1_000_003 if self.is_second else 0)

    @property
    def source(self) -> ImageSource:
        """Its images."""
        return self.run.realism_source if self.is_second else self.run.finetune_source

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.run.folder / "realism" if self.is_second else self.run.folder

    @property
    def latents(self) -> Path:
        """Folder of its latent cache."""
        return self.folder / "latents" if self.is_second else self.run.path_of("cache")

    @property
    def prompts(self) -> Path:
        """Folder of its prompt cache."""
        return self.folder / "prompts" if self.is_second else self.run.path_of("prompts")

    @property
    def start(self) -> Path | None:
        """What an earlier training left, from which it starts; None for the pretrained pair, widened."""
        if self.is_second:
            return self.run.path_of("finetune")
        if self.config.start is None:
            return None
        path = Path(self.config.start) / self.run.upgraded_name
        if not path.is_dir():
            raise FileNotFoundError(
                f"finetune.start names {self.config.start}, which has no {self.run.upgraded_name}/. Finish that run "
                f"first, or correct the path."
            )
        return path
