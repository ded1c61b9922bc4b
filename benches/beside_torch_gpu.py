"""PyTorch's half of `erase-concept doctor --gpu-bench --python PYTHON` (the program has this script in it):

    python beside_torch_gpu.py [--device cuda] [--demo weights/demo] [PIECE...]

Times each piece in float32, in float32 with TF32, and in bfloat16, and prints a line of JSON for each: median seconds, and the
most bytes that tensors took on the GPU. Weights are random; time does not depend on them. Attention is diffusers' and
transformers' default, scaled_dot_product_attention; cuDNN's choice of algorithms is PyTorch's default.
"""
import argparse
import gc
import json
import statistics
import time

import torch

WARM_UP, RUNS, SECONDS = 2, 10, 1.5
MODES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
KEPT = {}


def on(device, dtype, make):
    """A network with random weights, made where it will be."""
    with torch.device(device):
        return make().to(dtype).eval()


def unet(device, dtype):
    """One is kept for the pieces of a mode; all of it frozen, and without gradients."""
    from diffusers import UNet2DConditionModel
    if dtype not in KEPT:
        KEPT.clear()
        KEPT[dtype] = on(
            device, dtype, lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    KEPT[dtype].zero_grad(set_to_none=True)
    return KEPT[dtype].requires_grad_(False)


def unet_inputs(device, dtype, rows):
    return torch.randn(rows, 4, 64, 64, device=device, dtype=dtype), torch.randn(rows, 77, 768, device=device, dtype=dtype)


def unet_forward(device, dtype, rows):
    model, (x, context) = unet(device, dtype), unet_inputs(device, dtype, rows)
    return torch.no_grad()(lambda: model(x, 500, context).sample)


def unet_xattn(device, dtype, rows):
    model, (x, context) = unet(device, dtype), unet_inputs(device, dtype, rows)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attn2" in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run():
        model.zero_grad(set_to_none=True)
        model(x, 500, context).sample.float().square().mean().backward()
        return trained[0].grad

    return run


def vae_decode(device, dtype):
    from diffusers import AutoencoderKL
    model = on(device, dtype, lambda: AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)).requires_grad_(False)
    latent = torch.randn(1, 4, 64, 64, device=device, dtype=dtype)
    return torch.no_grad()(lambda: model.decode(latent).sample)


def text(device, dtype):
    from transformers import CLIPTextConfig, CLIPTextModel
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    model = on(device, dtype, lambda: CLIPTextModel(config)).requires_grad_(False)
    ids = torch.randint(0, 49408, (2, 77), device=device)
    return torch.no_grad()(lambda: model(ids).last_hidden_state)


def demo_sample(device, dtype, folder):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(device, dtype)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(["a red star"] * 32, num_inference_steps=20, guidance_scale=7.5, output_type="pt").images


def pieces(demo):
    found = {"text": text, "vae-decode": vae_decode}
    if demo:
        found["demo-sample"] = lambda device, dtype: demo_sample(device, dtype, demo)
    for rows in (1, 4):
        found[f"unet-forward-{rows}"] = lambda device, dtype, rows=rows: unet_forward(device, dtype, rows)
        found[f"unet-xattn-{rows}"] = lambda device, dtype, rows=rows: unet_xattn(device, dtype, rows)
    return found


def median(run, gpu):
    def once():
        began = time.perf_counter()
        run().flatten()[0].item()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    began = time.perf_counter()
    for _ in range(WARM_UP):
        once()
        if not gpu and time.perf_counter() - began > SECONDS:
            break
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began, seconds = time.perf_counter(), []
    while len(seconds) < 3 or (len(seconds) < RUNS and time.perf_counter() - began < SECONDS):
        seconds.append(once())
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if gpu else None


def measure(make, device, mode, gpu):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == "tf32"
    try:
        seconds, peak = median(make(device, MODES[mode]), gpu)
        return {"seconds": seconds, "peak_bytes": peak}
    except Exception as error:  # said in the piece's row; the others go on
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PIECE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--demo", help="a folder with the demo model")
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    known = pieces(arguments.demo)
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no such piece: {', '.join(unknown)}; there are {', '.join(known)}")
    if gpu:
        torch.cuda.set_device(torch.device(arguments.device).index or 0)
    torch.manual_seed(0)
    import diffusers
    import transformers
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    say({"versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"})
    for mode in MODES:
        for name in arguments.names or known:
            if not name.startswith("unet"):
                KEPT.clear()
            say({"piece": name, "mode": mode, **measure(known[name], arguments.device, mode, gpu)})


def say(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
