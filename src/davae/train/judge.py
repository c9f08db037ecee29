"""The task of a judge of `solids`: to name shape, material and colour, and to tell how fine an image is."""

import torch.nn.functional as F
from torch import Tensor, nn

from davae.core.pixels import uint8_to_signed
from davae.models.solids_judge import COARSEST, SolidsJudge
from davae.train.batch import Batch
from davae.train.judge_settings import JudgeConfig
from davae.train.task import Learner, Loss


class JudgeTask:
    """Training of a judge on batches of a `JudgeSet`.

    Args:
        judge: in training mode.
        config: see `JudgeConfig`.
    """

    def __init__(self, judge: SolidsJudge, config: JudgeConfig) -> None:
        self.config, self.attributes = config, tuple(judge.words)
        self.learners = {"judge": Learner(judge, config.optim, config.ema_decay, config.ema_ramp)}
        self.state: dict[str, Tensor] = {}

    def is_active(self, learner: str, step: int) -> bool:
        """See `Task`."""
        return True

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """See `Task`."""
        fineness = batch["fineness"]
        judgement = network(uint8_to_signed(batch["image"]))
        values = {
            name: (
                F.cross_entropy(judgement.logits[name].float(), batch[name], reduction="none") * self._named(fineness)
            )
            for name in self.attributes
        }
        values["fineness"] = ((judgement.fineness.float() - fineness) / (1 - COARSEST)).square()
        means = {name: value.mean() for name, value in values.items()}
        total = sum((means[name] for name in self.attributes), self.config.fineness_weight * means["fineness"])
        return Loss(total, {name: value.detach() for name, value in means.items()})

    def _named(self, fineness: Tensor) -> Tensor:
        """Weights [B] of the errors in naming what images show."""
        if self.config.names_enlarged:
            return fineness.new_ones(fineness.shape)
        # By the expected number of renderings, not the batch's own: a loss is a mean, whoever shares the batch.
        return (fineness == 1).to(fineness) / (1 - self.config.enlarged_share)
