"""The package as an installation: what importing it costs and pulls in, what it ships, what its lock pins."""

import json
import re
import subprocess
import sys
import time
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import davae
from davae.data.solids import SolidsSource
from davae.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "pydantic", "numpy", "matplotlib", "yaml")


def _python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter; its standard output."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _loaded_after(code: str, candidates: tuple[str, ...]) -> list[str]:
    out = _python(f"{code}\nimport json, sys\nprint(json.dumps([n for n in {candidates!r} if sys.modules.get(n)]))")
    return json.loads(out.splitlines()[-1])


def test_every_module_imports_without_torchvision() -> None:
    code = """
import sys
sys.modules["torchvision"] = None
import importlib, pkgutil, davae
names = [module.name for module in pkgutil.walk_packages(davae.__path__, "davae.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 40, names
"""
    assert _loaded_after(code, ("torchvision", "lpips", "timm", "open_clip", "torch_fidelity", "cleanfid")) == []


def test_import_davae_imports_nothing_heavy() -> None:
    assert _loaded_after("import davae", HEAVY) == []


def test_import_davae_costs_little_beside_torch() -> None:
    code = "import torch, time; start = time.perf_counter(); import davae; print(time.perf_counter() - start)"
    assert float(_python(code)) < 0.3


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--version"], 0), (["run", "--help"], 0), (["finetoon"], 2), ([], 2)],
    ids=["help", "version", "help of a verb", "misspelt verb", "no verb"],
)
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str], status: int) -> None:
    code = f"""
import sys
from davae.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code == {status}, stop.code
else:
    raise AssertionError("did not exit")
"""
    assert _loaded_after(code, HEAVY) == []


@pytest.mark.parametrize("argument", ["--help", "finetoon"])
def test_help_and_mistakes_answer_within_a_second(argument: str) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "davae", argument], capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0, seconds


def test_a_misspelt_verb_is_answered_with_the_nearest_one() -> None:
    done = subprocess.run([sys.executable, "-m", "davae", "finetoon"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "finetune" in done.stderr
    assert "Traceback" not in done.stderr


def test_public_names_exist_and_keep_their_stored_home() -> None:
    for name in davae.__all__:
        assert name in dir(davae)
        assert getattr(davae, name) is not None
    for name in ("AutoencoderDA", "LightningDiT", "LightningDiTPipeline"):
        assert getattr(davae, name).__module__ == "davae", "diffusers stores this name; it must never move"
    with pytest.raises(AttributeError, match="AutoencoderDA"):
        _ = davae.AutoencoderDAA


def test_package_carries_its_types_and_recipes() -> None:
    package = files("davae")
    assert (package / "py.typed").is_file()
    assert (package / "recipes" / "demo.yaml").is_file()
    assert (package / "recipes" / "demo-quick.yaml").is_file()


def test_package_carries_a_pair_with_its_provenance() -> None:
    pair = Path(str(files("davae"))) / "pair"
    weights = list(pair.rglob("*.safetensors"))
    assert len(weights) == 2
    assert sum(path.stat().st_size for path in weights) < 12_000_000
    assert not [path for path in pair.rglob("*") if path.is_file() and path.suffix not in (".json", ".safetensors")]
    provenance = json.loads((pair / "provenance.json").read_text())
    assert {"git", "date", "last", "hardware", "recipe"} <= provenance.keys()
    assert load_recipe("solids-pair").as_dict() == parse_recipe(provenance["recipe"]).as_dict()


def test_package_carries_a_judge_with_its_provenance() -> None:
    judge = Path(str(files("davae"))) / "judge"
    assert {path.name for path in judge.iterdir()} == {
        *("config.json", "diffusion_pytorch_model.safetensors", "checksums.json", "provenance.json")
    }
    assert sum(path.stat().st_size for path in judge.iterdir()) < 3_000_000
    provenance = json.loads((judge / "provenance.json").read_text())
    assert load_recipe("solids-judge").as_dict() == parse_recipe(provenance["recipe"]).as_dict()


def test_embedded_pair_draws_its_classes() -> None:
    # Every class of the solids on its own seed: not noise, not one grey, and no two alike.
    pipe = davae.LightningDiTPipeline.from_pretrained(Path(str(files("davae"))) / "pair")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(18, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    images = pipe(range(18), num_inference_steps=8, guidance_scale=1.5, latents=noise, output_type="pt").images
    assert images.shape == (18, 3, 64, 64)
    real = SolidsSource(18, seed=1).images(range(18), 64).float() / 127.5 - 1
    with torch.no_grad():  # through the same autoencoder, which softens both alike
        real = pipe.vae.decode(pipe.vae.encode(real).latent).sample / 2 + 0.5

    def statistics(batch: torch.Tensor) -> torch.Tensor:
        steepness = (batch.diff(dim=-1).abs().mean() + batch.diff(dim=-2).abs().mean()) / 2
        return torch.stack([batch.mean(), batch.std(), steepness])

    torch.testing.assert_close(statistics(images), statistics(real), rtol=0.25, atol=0)
    assert torch.pdist(images.flatten(1)).min() > 2


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == davae.__version__
    assert f"\nversion: {davae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{davae.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_lock_pins_everything_that_the_project_asks_for() -> None:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert match, f"not an exact pin: {line}"
            pins[canonicalize_name(match[1])] = match[2]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = whole["project"]
    wanted = [
        *whole["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
    ]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in requirements/lock.txt"
        assert requirement.specifier.contains(pin), f"lock pins {requirement.name}=={pin}, project asks {requirement}"
    assert "torchvision" not in pins


def test_the_source_distribution_has_all_that_the_repository_has() -> None:
    """So that its tests run: they read pages, recipes, benchmarks and pins."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no checkout: this is the source distribution, whose tests are running")
    tops = {line.partition("/")[0] for line in listed.stdout.splitlines() if not line.startswith(".")}
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert tops - {"pyproject.toml"} == set(targets["sdist"]["include"])
