"""Opens what `erase-concept` wrote with Python's diffusers, renders the same prompts from the same noise with both, and compares.

    pip install torch diffusers transformers peft pillow
    python3 tests/diffusers/check_outputs.py BASE OUTPUT... [--program target/release/erase-concept]

BASE is the folder of the model that was edited (for the demo: a copy of weights/demo), in diffusers' layout. An OUTPUT is

* a folder in diffusers' layout: opened with `from_pretrained`;
* a single file: opened with `from_single_file`, with the configs of BASE;
* a LoRA (a safetensors file with `lora_` in its tensors' names): BASE is opened, and the file with `load_lora_weights`.

The program renders a folder and a single file itself. For a LoRA `NAME.safetensors` it renders the model that BASE and the LoRA
make together: the folder `NAME-applied` beside it, if there is one, otherwise `--edited`, otherwise the first OUTPUT that is a
folder (so that a LoRA is compared with the model that it was made from; only one of full rank can hold to that).

Noise is drawn as the program draws it: picture i of all has the seed SEED + i, and a draw of `torch.randn` on the CPU of its
own. Both use one sampler, number of steps and scale of guidance, and 32 bits. A line is printed for each OUTPUT, with the lowest
PSNR of its pictures (of 8-bit values, over 255; `same` where no value differs), and how far BASE's own pictures are, to see that
the edit shows. The exit code is 1 if a PSNR is below `--least` (45 dB), or a LoRA has layers that diffusers does not use.

Nothing is fetched: diffusers is told to stay offline. Outputs to try it on, without an erase job (BASE may be tiny-sd21 or
tiny-sdxl too, in tests/fixtures; in tiny-sdxl's random weights rounding grows so much that diffusers in 32 and in 64 bits differ
by 41 dB after 20 steps: take `--steps 10`):

    BASE=demo OUTPUTS=/tmp/run cargo test --release --test lora -- --ignored outputs_for_diffusers
    python3 tests/diffusers/check_outputs.py weights/demo /tmp/run/diffusers /tmp/run/*.safetensors

On a busy machine OMP_NUM_THREADS=1 makes PyTorch many times as fast.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import peft
import torch
import transformers
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open

SAMPLERS = {"ddim": DDIMScheduler, "pndm": PNDMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler,
            "lms": LMSDiscreteScheduler}


def kind_of(path):
    if path.is_dir():
        return "folder"
    with safe_open(path, "pt") as file:
        return "LoRA" if any("lora_" in key for key in file.keys()) else "single file"


def pipeline_class(base):
    name = json.loads((base / "model_index.json").read_text())["_class_name"]
    return StableDiffusionXLPipeline if name == "StableDiffusionXLPipeline" else StableDiffusionPipeline


def opened(base, path, kind):
    """The pipeline, and what is wrong with it in words, or nothing."""
    pipeline, options = pipeline_class(base), {"dtype": torch.float32, "local_files_only": True}
    if kind == "folder":
        return pipeline.from_pretrained(path, **options), ""
    if kind == "single file":
        return pipeline.from_single_file(str(path), config=str(base), **options), ""
    pipe = pipeline.from_pretrained(base, **options)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    with safe_open(path, "pt") as file:
        there = sum(key.endswith(".lora_down.weight") for key in file.keys())
    used = sum(hasattr(module, "lora_A") for module in pipe.unet.modules())
    return pipe, "" if used == there else f"uses {used} of {there} layers"


def theirs(pipe, args):
    """Pictures as diffusers renders them."""
    pipe.set_progress_bar_config(disable=True)
    # PNDM's config may leave out what DDIM's does by default and nobody wants
    pipe.scheduler = SAMPLERS[args.scheduler].from_config(pipe.scheduler.config, **({"clip_sample": False} if args.scheduler == "ddim" else {}))
    size = pipe.unet.config.sample_size
    pictures = []
    for i, prompt in enumerate(args.prompt):
        noise = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(args.seed + i))
        image = pipe(prompt, latents=noise, num_inference_steps=args.steps, guidance_scale=args.guidance_scale).images[0]
        pictures.append(np.asarray(image.convert("RGB")))
    return pictures


def ours(model, args):
    """Pictures as the program renders them."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "samples"
        command = [args.program, "sample", "--model", str(model), "--offline", "--seed", str(args.seed), "--steps", str(args.steps),
                   "--guidance-scale", str(args.guidance_scale), "--scheduler", args.scheduler, "--output", str(out)]
        command += [word for prompt in args.prompt for word in ("--prompt", prompt)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(out.glob("*.png"))]


def psnr(a, b):
    """The lowest of any picture, in dB."""
    def one(a, b):
        error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
        return math.inf if error == 0 else 10 * math.log10(255 ** 2 / error)
    assert len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b)), "pictures of other sizes"
    return min(one(x, y) for x, y in zip(a, b))


def rendered(path, kind, args):
    """What the program renders for an output."""
    applied = path.with_name(f"{path.stem}-applied")
    if kind != "LoRA":
        return path
    return applied if applied.is_dir() else args.edited


def shown(db):
    return "same" if math.isinf(db) else f"{db:.1f} dB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=pathlib.Path, help="folder of the model that was edited")
    parser.add_argument("outputs", type=pathlib.Path, nargs="+", help="folders, single files, LoRAs")
    parser.add_argument("--program", default="target/release/erase-concept")
    parser.add_argument("--edited", type=pathlib.Path, help="what the program renders for a LoRA")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--scheduler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--least", type=float, default=45.0, help="dB (default 45)")
    args = parser.parse_args()
    args.prompt = args.prompt or ["a red star", "a blue circle", "two green rings on a white background", "a photo"]
    kinds = {path: kind_of(path) for path in args.outputs}
    args.edited = args.edited or next((path for path, kind in kinds.items() if kind == "folder"), None)
    models = {path: rendered(path, kind, args) for path, kind in kinds.items()}
    if None in models.values():
        parser.error("a LoRA is compared with the model that it makes of BASE: name that as --edited")

    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in [diffusers, transformers, peft, torch])
    print(f"{versions}\n{len(args.prompt)} pictures, {args.scheduler}, {args.steps} steps, guidance {args.guidance_scale:g}\n")
    base = ours(args.base, args)
    rows, failed = [("output", "kind", "PSNR", "BASE's own", "")], False
    for path, kind in kinds.items():
        print(f"opening {path} ({kind})", file=sys.stderr)
        pipe, wrong = opened(args.base, path, kind)
        expected = ours(models[path], args)
        found = psnr(theirs(pipe, args), expected)
        failed |= found < args.least or bool(wrong)
        verdict = wrong or ("" if found >= args.least else f"below {args.least:g} dB")
        rows.append((path.name, kind, shown(found), shown(psnr(base, expected)), verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
