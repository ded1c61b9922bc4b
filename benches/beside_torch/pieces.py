"""PyTorch's half of `cargo bench --bench beside_torch`: `pieces.py NAME RUNS` prints the name, the median of the runs in
seconds, and the process's largest resident memory in bytes. Weights are random; time does not depend on them.

    pip install torch diffusers transformers
"""
import pathlib
import resource
import statistics
import sys
import time

import torch

DEMO = pathlib.Path(__file__).parents[2] / "weights" / "demo"


def unet(side, trained, dtype=torch.float32):
    from diffusers import UNet2DConditionModel
    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval().to(dtype)
    x, context = torch.randn(1, 4, side, side, dtype=dtype), torch.randn(1, 77, 768, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))

    def forward():
        with torch.inference_mode():
            model(x, 500, context)

    def backward():
        model.zero_grad()
        model(x, 500, context).sample.square().mean().backward()

    return backward if any(parameter.requires_grad for parameter in model.parameters()) else forward


def vae():
    from diffusers import AutoencoderKL
    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).eval()
    latent = torch.randn(1, 4, 64, 64)
    return torch.inference_mode()(lambda: model.decode(latent))


def text():
    from transformers import CLIPTextConfig, CLIPTextModel
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    model, ids = CLIPTextModel(config).eval(), torch.randint(0, 49408, (8, 77))
    return torch.inference_mode()(lambda: model(ids))


def demo():
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(DEMO, safety_checker=None, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(["a red star"] * 32, num_inference_steps=20, guidance_scale=7.5, output_type="pt")


def erase():
    from erase import job
    return job()


PIECES = {
    "unet-forward": lambda: unet(64, lambda name: False),
    "unet-forward-bf16": lambda: unet(64, lambda name: False, torch.bfloat16),
    "unet-xattn": lambda: unet(64, lambda name: "attn2" in name),
    "unet-full": lambda: unet(32, lambda name: True),
    "vae-decode": vae,
    "text": text,
    "demo-sample": demo,
    "erase": erase,
}

if __name__ == "__main__":
    name, runs = sys.argv[1], int(sys.argv[2])
    piece = PIECES[name]()
    piece()
    seconds = []
    for _ in range(max(runs, 1)):
        began = time.perf_counter()
        piece()
        seconds.append(time.perf_counter() - began)
    print(name, statistics.median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
