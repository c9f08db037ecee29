"""What a stage costs, without weights or a GPU: memory, FLOPs and hours, counted on tensors without values."""

from davae.evaluate.cost.cost import ASSUMPTIONS, UTILISATION, Cost, gib, hours, readable
from davae.evaluate.cost.flops import Flops
from davae.evaluate.cost.geometry import perceptual_network, public_autoencoder
from davae.evaluate.cost.inference import decoding_cost, drawing_cost, encoding_cost
from davae.evaluate.cost.memory import Memory, Parameters, count_parameters
from davae.evaluate.cost.training import training_cost, training_flops, training_memory
from davae.evaluate.cost.workload import Workload, image_batch

__all__ = [
    "ASSUMPTIONS",
    "UTILISATION",
    "Cost",
    "Flops",
    "Memory",
    "Parameters",
    "Workload",
    "count_parameters",
    "decoding_cost",
    "drawing_cost",
    "encoding_cost",
    "gib",
    "hours",
    "image_batch",
    "perceptual_network",
    "public_autoencoder",
    "readable",
    "training_cost",
    "training_flops",
    "training_memory",
]
