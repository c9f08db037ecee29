"""Owner of every path of a run: `runs/NAME/` and what lies in it.

runs/NAME/  recipe.yaml  run.json  stats.jsonl  tokenizer/  latents/  prompts/  transformer/ or pipeline/
            checkpoints/  previews/  samples/  figures/  results.json  report.html
            pretrain/{vae,latents,pipeline}/            the base pair of a recipe that trains it
            realism/{latents,prompts,transformer}/      the second round of fine-tuning
            judge/                                      the judge of a recipe that trains one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RoundName = Literal["finetune", "realism"]
"""The two rounds of fine-tuning."""

_RECIPE, _RECORD = "recipe.yaml", "run.json"
_CLAIMS = (_RECIPE, _RECORD, "model_index.json", "config.json")
"""Files that say that a folder belongs to a run or a model."""
_ROLES = ("tokenizer", "vae", "pipeline")
"""Names of folders that say nothing of whose they are."""


@dataclass(frozen=True)
class RunFolder:
    """Where things lie.

    Args:
        root: `runs/NAME`.
        is_text: whether the pair draws from text: then fine-tuning leaves its trained parts, not a whole pipeline.
    """

    root: Path
    is_text: bool = False

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / _RECIPE

    @property
    def record(self) -> Path:
        """Which stages are done, with which inputs."""
        return self.root / _RECORD

    @property
    def stats(self) -> Path:
        """Curves of all trainings."""
        return self.root / "stats.jsonl"

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of one training."""
        return self.root / "checkpoints" / stage

    @property
    def base_autoencoder(self) -> Path:
        """The autoencoder that section pretrain trains."""
        return self.root / "pretrain" / "vae"

    @property
    def base_latents(self) -> Path:
        """The latent cache of section pretrain."""
        return self.root / "pretrain" / "latents"

    @property
    def base_pair(self) -> Path:
        """The pair that section pretrain makes."""
        return self.root / "pretrain" / "pipeline"

    @property
    def tokenizer(self) -> Path:
        """The upgraded autoencoder."""
        return self.root / "tokenizer"

    def latents(self, round_name: RoundName = "finetune") -> Path:
        """The latent cache of a round of fine-tuning."""
        return self._round(round_name) / "latents"

    def prompts(self, round_name: RoundName = "finetune") -> Path:
        """The prompt cache of a round of fine-tuning."""
        return self._round(round_name) / "prompts"

    def finetuned(self, round_name: RoundName = "finetune") -> Path:
        """What a round of fine-tuning leaves: a whole small pipeline, or the trained parts of a large one."""
        return self._round(round_name) / ("transformer" if self.is_text else "pipeline")

    def preview(self, round_name: RoundName, step: int) -> Path:
        """A grid that was drawn during a round of fine-tuning, after so many steps."""
        return self.root / "previews" / f"{round_name}-{step:08d}.png"

    def previews(self, round_name: RoundName) -> list[tuple[int, Path]]:
        """(steps, grid) of all that were drawn, in order."""
        grids = sorted((self.root / "previews").glob(f"{round_name}-*.png"))
        return [(int(grid.stem.rpartition("-")[2]), grid) for grid in grids]

    @property
    def judge(self) -> Path:
        """The judge that section judge trains."""
        return self.root / "judge"

    @property
    def samples(self) -> Path:
        """Drawn images."""
        return self.root / "samples"

    @property
    def gallery(self) -> Path:
        """A grid of the first drawn images."""
        return self.samples / "grid.png"

    @property
    def judged(self) -> Path:
        """Images while they are judged; its name is one that the next command removes."""
        return self.root / ".judged.tmp"

    @property
    def results(self) -> Path:
        """Measurements with their protocol."""
        return self.root / "results.json"

    def figure(self, name: str) -> Path:
        """A picture of the report."""
        return self.root / "figures" / f"{name}.png"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.root / "report.html"

    def relative(self, path: Path) -> str:
        """A path as the report and results.json name it."""
        return path.relative_to(self.root).as_posix()

    def _round(self, name: RoundName) -> Path:
        return self.root if name == "finetune" else self.root / name


def recipe_beside(result: Path) -> Path | None:
    """The recipe of the run that a result (for example its tokenizer/) lies in; None outside of runs."""
    recipe = result.resolve().parent / _RECIPE
    return recipe if recipe.is_file() else None


def refuse_claimed(out: Path, what: str) -> None:
    """Refuse to write a report into the folder of a run or a model.

    Raises:
        ValueError: it is one; `what` says what was to be written.
    """
    for name in _CLAIMS:
        if (out / name).exists():
            raise ValueError(
                f"Cannot write {what} to {out}: {name} there belongs to a run or a model, whose results it would "
                f"replace. Give another folder."
            )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell models apart: their runs' folders, or as much of the ends of the paths as that takes.

    Raises:
        ValueError: a path is given twice.
    """
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError(f"An autoencoder is compared with others than itself; got {', '.join(map(str, paths))}.")
    runs = [next((part for part in reversed(parts) if part not in _ROLES), parts[-1]) for parts in whole]
    if len(set(runs)) == len(runs):
        return runs
    length = 1
    while len({parts[-length:] for parts in whole}) < len(whole):
        length += 1
    return ["/".join(parts[-length:]) for parts in whole]
