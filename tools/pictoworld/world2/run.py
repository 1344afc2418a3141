"""Trains PictoWorld 2, one command a stage: autoencoder, text encoders, FLUX, DiT, judge, unconditional.

Every stage has a folder of its own below the output folder, with its checkpoint, its log and its result, and goes on where it
was stopped. Later stages read the results of earlier ones.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DiTPipeline, FluxPipeline
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from saferedir.pictoworld.world2.judge import Judge
from saferedir.utils.progress import SILENT, Progress
from tools.pictoworld.training.loop import START
from tools.pictoworld.training.run import save_half
from tools.pictoworld.world2.autoencoder import train_autoencoder
from tools.pictoworld.world2.dit import CLASS_NAMES, train_dit
from tools.pictoworld.world2.dit import assemble as assemble_dit
from tools.pictoworld.world2.flux import assemble, train_flux
from tools.pictoworld.world2.judge import judge_accuracy, train_judge
from tools.pictoworld.world2.text_encoders import train_clip_tokenizer, train_t5_tokenizer, train_text_encoders
from tools.pictoworld.world2.unconditional import train_unconditional


@dataclass(frozen=True)
class StageRun:
    """What every stage is given. `steps` is the stage's own number, or a smaller one for a trial."""

    out: Path
    steps: int
    device: torch.device
    progress: Progress = SILENT
    seed: int = 0
    batch: int | None = None
    pool: int = 40_000
    captions: int = 20_000  # that the tokenizers are made from
    compiled: bool = False  # the transformers, through `torch.compile`

    def folder(self, stage: str) -> Path:
        """The stage's folder below `out`."""
        path = self.out / stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    def common(self, stage: str) -> dict[str, Any]:
        """Arguments that every trainer takes."""
        batch = {} if self.batch is None else {"batch": self.batch}
        return {
            "steps": self.steps,
            "device": self.device,
            "progress": self.progress,
            "seed": self.seed,
            "log": _log_to(self.folder(stage) / "log.jsonl"),
            **batch,
        }

    @property
    def bf16(self) -> bool:
        """Whether to train in bfloat16: on an accelerator, and on a CPU with instructions for it."""
        return self.device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported())


def _log_to(path: Path) -> Callable[[dict[str, Any]], None]:
    def log(record: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**record, "at": round(time.time(), 1)}) + "\n")

    return log


def run_autoencoder(run: StageRun) -> Path:
    """`vae/vae`: the autoencoder."""
    folder = run.folder("vae")
    vae = train_autoencoder(folder / "autoencoder.ckpt", bf16=run.bf16, **run.common("vae"))
    vae.save_pretrained(folder / "vae")
    return folder / "vae"


def run_text(run: StageRun) -> Path:
    """`text`: both tokenizers and text encoders, in float32."""
    folder = run.folder("text")
    if not (folder / "tokenizer_2" / "tokenizer.json").exists():
        train_clip_tokenizer(run.seed, run.captions).save_pretrained(folder / "tokenizer")
        train_t5_tokenizer(run.seed, run.captions).save_pretrained(folder / "tokenizer_2")
    tokenizer, tokenizer_2 = load_tokenizers(folder)
    t5, clip, accuracy = train_text_encoders(tokenizer_2, tokenizer, folder / "text.ckpt", **run.common("text"))
    clip.save_pretrained(folder / "text_encoder")
    t5.save_pretrained(folder / "text_encoder_2")
    (folder / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    return folder


def load_tokenizers(folder: Path) -> tuple[Any, Any]:
    """The CLIP and the T5 tokenizer that `run_text` wrote."""
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), AutoTokenizer.from_pretrained(folder / "tokenizer_2")


def load_text_encoders(folder: Path) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The frozen text encoders that `run_text` wrote."""
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").requires_grad_(False).eval()
    return clip, t5


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The frozen autoencoder that `run_autoencoder` wrote."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder / "vae")
    return vae.requires_grad_(False).eval()


def run_flux(run: StageRun) -> Path:
    """`flux/pipeline`: a plain `FluxPipeline` in float16."""
    folder = run.folder("flux")
    vae = load_autoencoder(run.out / "vae")
    tokenizers, encoders = load_tokenizers(run.out / "text"), load_text_encoders(run.out / "text")
    settings = {"bf16": run.bf16, "pool": run.pool, "compiled": run.compiled, **run.common("flux")}
    transformer = train_flux(vae, tokenizers, encoders, folder, **settings)
    return publish(assemble(vae, tokenizers, encoders, transformer), folder / "pipeline")


def run_dit(run: StageRun) -> Path:
    """`dit/pipeline`: a plain `DiTPipeline` in float16."""
    folder = run.folder("dit")
    vae = load_autoencoder(run.out / "vae")
    pool = max(16, run.pool * 3 // 5)
    transformer = train_dit(vae, folder, bf16=run.bf16, pool=pool, compiled=run.compiled, **run.common("dit"))
    final = publish(assemble_dit(vae, transformer), folder / "pipeline")
    index = json.loads(
        (final / "model_index.json").read_text()
    )  # diffusers reads the names of classes, but does not save them
    (final / "model_index.json").write_text(json.dumps({**index, "id2label": CLASS_NAMES}, indent=2) + "\n")
    return final


def unpack(pipeline: Path, out: Path, dit: Path | None = None, ddpm: Path | None = None) -> Path:
    """Lay the parts of a finished `FluxPipeline` where the stages look for them, in float32.

    The other stages then need no training before them, and FLUX's own goes on from its transformer (`flux/start`); `dit`, a
    finished `DiTPipeline`, does so too (`dit/start`).
    """
    pipe = FluxPipeline.from_pretrained(pipeline).to(torch.float32)
    pipe.vae.save_pretrained(out / "vae" / "vae")
    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        getattr(pipe, name).save_pretrained(out / "text" / name)
    pipe.transformer.save_pretrained(out / "flux" / START)
    if dit is not None:
        _velocities(DiTPipeline.from_pretrained(dit)).transformer.save_pretrained(out / "dit" / START)
    if ddpm is not None:
        _velocities(DDPMPipeline.from_pretrained(ddpm)).unet.save_pretrained(out / "ddpm" / START)
    return out / "flux" / START


def _velocities(pipe: Any) -> Any:
    """The pipeline in float32; ValueError unless it predicts what the stages train on."""
    if pipe.scheduler.config.prediction_type != "v_prediction":
        raise ValueError(
            f"this {type(pipe).__name__} predicts {pipe.scheduler.config.prediction_type}, not velocities."
        )
    return pipe.to(torch.float32)


def run_judge(run: StageRun) -> Path:
    """`judge/judge.safetensors`, and its accuracy on renders and on round trips."""
    folder = run.folder("judge")
    vae = load_autoencoder(run.out / "vae").to(run.device)
    judge = train_judge(vae, folder / "judge.ckpt", bf16=run.bf16, **run.common("judge")).cpu()
    judge.save(folder / "judge.safetensors")
    saved = Judge.load(folder / "judge.safetensors")
    count = min(2000, 32 * run.steps)
    accuracy = {
        "renders": judge_accuracy(saved, None, count),
        "round trips": judge_accuracy(saved, vae.cpu(), count),
        "images": count,
    }
    (folder / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    return folder / "judge.safetensors"


def run_unconditional(run: StageRun) -> Path:
    """`ddpm/pipeline`: a plain `DDPMPipeline` in float16; it reads no other stage's result."""
    folder = run.folder("ddpm")
    return publish(train_unconditional(folder, pool=run.pool, bf16=run.bf16, **run.common("ddpm")), folder / "pipeline")


def publish(pipe: Any, final: Path) -> Path:
    """Save a pipeline in float16 beside its final name, then rename, so that a reader never finds half a model."""
    temporary = final.with_name(f"{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_half(pipe, temporary)
    for file in temporary.glob("*/tokenizer.json"):
        compact_tokenizer(file)
    for path in (temporary / "model_index.json", temporary / "tokenizer_2" / "tokenizer_config.json"):
        if path.exists():  # older transformers know the class by its old name only, newer ones by both
            path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    shutil.rmtree(final, ignore_errors=True)
    return temporary.rename(final)


@dataclass(frozen=True)
class Stage:
    """One stage: its full number of steps and the function that runs it, which returns where the result lies."""

    steps: int
    run: Callable[[StageRun], Path]


STAGES: Mapping[str, Stage] = {
    "vae": Stage(1600, run_autoencoder),
    "text": Stage(5500, run_text),
    "flux": Stage(7500, run_flux),
    "dit": Stage(8000, run_dit),
    "judge": Stage(2500, run_judge),
    "ddpm": Stage(4000, run_unconditional),
}


def compact_tokenizer(file: Path) -> None:
    """Write a tokenizer.json without white space, and the log probabilities of a unigram model to four digits."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["model"]["type"] == "Unigram":
        content["model"]["vocab"] = [[text, round(score, 4)] for text, score in content["model"]["vocab"]]
    file.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
