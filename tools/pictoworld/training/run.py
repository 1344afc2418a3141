"""Trains the whole world, stage by stage: tokenizer, text encoder, autoencoder, judge, denoiser.

Every stage leaves its result in the output folder; a run that was killed goes on from the last checkpoint. The packaged
weights were made by `python -m tools.pictoworld train` with the defaults.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from saferedir.pictoworld.judge import Judge
from saferedir.utils.progress import SILENT, Progress
from tools.pictoworld.training.autoencoder import train_autoencoder
from tools.pictoworld.training.denoiser import build_scheduler, train_denoiser
from tools.pictoworld.training.judge import train_judge
from tools.pictoworld.training.text_encoder import train_text_encoder, train_tokenizer

#: rows of one step of each part, at `batch_share` 1
BATCHES = {"text_encoder": 128, "autoencoder": 16, "judge": 64, "denoiser": 64}
FEWEST_ROWS = 2  # the judge asks for one whole image and a broken one


@dataclass(frozen=True)
class WorldConfig:
    """How long to train each part. The defaults take about two hours on two CPU cores.

    `batch_share` is a share of every part's batch, for tests of the stages.
    """

    text_encoder_steps: int = 1500
    autoencoder_steps: int = 4800
    judge_steps: int = 1800
    denoiser_steps: int = 5000
    pool: int = 40_000
    seed: int = 0
    batch_share: float = 1.0

    def batch(self, part: str) -> int:
        """Rows of one step of that part."""
        return max(FEWEST_ROWS, round(BATCHES[part] * self.batch_share))

    def scaled(self, share: float) -> WorldConfig:
        """The same plan with every stage shortened (for trials) or lengthened."""
        steps = {k: max(2, round(v * share)) for k, v in asdict(self).items() if k.endswith("_steps")}
        return replace(self, **steps, pool=max(256, round(self.pool * min(1.0, share))))


def assemble(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any) -> StableDiffusionPipeline:
    """A plain `StableDiffusionPipeline` from the parts, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_world(
    out: Path,
    config: WorldConfig,
    *,
    device: torch.device | None = None,
    progress: Progress = SILENT,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train everything into `out`; returns the folder of the finished pipeline (`out/pipeline`, float16)."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = out / "checkpoints"
    work.mkdir(parents=True, exist_ok=True)
    refuse_other_plan(work / "plan.json", config)
    started = time.monotonic()
    facts: dict[str, Any] = {"config": asdict(config), "device": device.type, "torch": torch.__version__}
    common: dict[str, Any] = {"device": device, "seed": config.seed, "progress": progress, "log": log}
    if (work / "tokenizer").exists():
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    else:
        tokenizer = train_tokenizer(config.seed)
        tokenizer.save_pretrained(work / "tokenizer")
    if (work / "text_encoder" / "config.json").exists():
        text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder").requires_grad_(False).to(device)
    else:
        text_encoder, facts["text_encoder_accuracy"] = train_text_encoder(
            tokenizer,
            work / "text_encoder.ckpt",
            steps=config.text_encoder_steps,
            batch=config.batch("text_encoder"),
            **common,
        )
        text_encoder.save_pretrained(work / "text_encoder")
    if (work / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    else:
        vae = train_autoencoder(
            work / "autoencoder.ckpt", steps=config.autoencoder_steps, batch=config.batch("autoencoder"), **common
        )
        vae.save_pretrained(work / "vae")
    vae.requires_grad_(False).eval()
    unet = train_denoiser(
        vae,
        tokenizer,
        text_encoder.eval(),
        work,
        steps=config.denoiser_steps,
        batch=config.batch("denoiser"),
        pool=config.pool,
        **common,
    )
    judge = train_judge(vae, work / "judge.ckpt", steps=config.judge_steps, batch=config.batch("judge"), **common)
    return _publish(out, assemble(vae, text_encoder, tokenizer, unet), judge, facts, time.monotonic() - started)


def save_half(pipe: DiffusionPipeline, folder: Path) -> None:
    """Save in float16, with text encoder configs that ask for float32 and no path of this machine.

    Without a dtype argument diffusers loads its models in float32, but transformers follows the config; the two must agree.
    """
    pipe.to(torch.float16).save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        facts = json.loads(path.read_text())
        facts.pop("_name_or_path", None)  # where a part was loaded from on the training machine
        if path.parent.name.startswith("text_encoder"):
            facts["dtype"] = "float32"
        path.write_text(json.dumps(facts, indent=2) + "\n")


def refuse_other_plan(path: Path, config: WorldConfig) -> None:
    """Checkpoints of one plan are of no use to another; `path` is where the plan is kept."""
    # what a plan does not name has its default: plans are older than some fields
    if path.exists() and WorldConfig(**json.loads(path.read_text())) != config:
        raise ValueError(
            f"{path.parent} holds checkpoints of another plan; give another --out or delete that folder to start over."
        )
    path.write_text(json.dumps(asdict(config), indent=2))


def _publish(out: Path, pipe: StableDiffusionPipeline, judge: Judge, facts: dict[str, Any], seconds: float) -> Path:
    """Write the finished folders beside their final names, then rename, so that a reader never finds half a model."""
    final, temporary = out / "pipeline", out / "pipeline.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_half(pipe, temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    judge.cpu().save(out / "judge.safetensors")
    facts["seconds_of_this_run"] = round(seconds, 1)
    (out / "world.json").write_text(json.dumps(facts, indent=2) + "\n")
    return final
