"""A tiny pretrained pair, and the command line as a process that costs no import."""

import os
import socket
import sys
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler

import davae


def tiny_autoencoder() -> AutoencoderDC:
    """f4 with 4 channels and a pixel-unshuffle stem: 16 px images have 4x4 latents."""
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.7,
    ).eval()


def tiny_transformer(channels: int = 4) -> davae.LightningDiT:
    """2 blocks of width 16 for 4x4 latents and the 18 classes of `solids`; no weight is left at its zero start."""
    model = davae.LightningDiT(
        sample_size=4, in_channels=channels, hidden_size=16, num_layers=2, num_attention_heads=2, num_classes=18
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def build_tiny_pair(folder: Path) -> Path:
    """Save a pair for 16 px images as a pipeline; upgraded by 2 it makes 32 px. The same bits every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = davae.LightningDiTPipeline(
            tiny_autoencoder(), tiny_transformer(), FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
        )
    pair.save_pretrained(folder)
    return folder


def start_davae(arguments: list[Any], log: Path, **environment: str) -> ForkServerProcess:
    """Start `davae ARGUMENTS` as a process of its own, leader of its own group; its output goes to `log`.

    It is forked from a server that has imported the library and done nothing else.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["davae.stages", "davae.cli"])
    process = context.Process(target=_davae, args=([str(argument) for argument in arguments], log, environment))
    process.start()
    return process


def start_davae_twice(arguments: list[Any], folder: Path, name: str) -> list[ForkServerProcess]:
    """The same by two processes that work together, as a launcher starts them: `NAME-0.log`, `NAME-1.log`."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start_davae(arguments, folder / f"{name}-{rank['RANK']}.log", **rank, **world) for rank in ranks]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _davae(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    from davae.cli import main

    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    set_start_method(None, force=True)  # its own workers start as they would without the server
    torch.set_num_threads(1)
    sys.exit(main(arguments))
