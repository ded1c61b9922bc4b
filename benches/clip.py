"""Pictures per second through transformers' CLIP, for `benches/clip.rs`'s cases (torch 2.15.0, transformers 5.23.0, pillow)."""
import os, statistics, time
import numpy as np, torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

torch.set_grad_enabled(False)
DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "weights", "demo", "clip")


def report(what, pictures, run):
    times, begin, cpu = [], time.time(), time.process_time()
    while len(times) < 3 or (time.time() - begin < 6 and len(times) < 50):
        start = time.time()
        run()
        times.append(time.time() - start)
    print(f"{what:<56} {pictures / statistics.median(times):>8.1f} pictures/s {(time.process_time() - cpu) / len(times) / pictures * 1e3:>8.2f} ms of processor time each", flush=True)


model, processor = CLIPModel.from_pretrained(DEMO).float().eval(), CLIPImageProcessorPil.from_pretrained(DEMO)
image = Image.fromarray(np.fromfunction(lambda y, x, c: (x * 3, y * 2)[0] + c * 30, (64, 64, 3)).astype(np.uint8))
features = lambda m, p: m.get_image_features(pixel_values=p)
report("demo's CLIP, 64x64, 256 pictures, preparing included", 256, lambda: [features(model, torch.from_numpy(np.array(processor([image] * 32)["pixel_values"]))) for _ in range(8)])
large = CLIPModel(CLIPConfig()).eval()
for batch in (1, 32):
    pixels = torch.randn(batch, 3, 224, 224)
    report(f"ViT-B/32's shape, batch {batch}", batch, lambda: features(large, pixels))
processor = CLIPImageProcessorPil()
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8))
report("preparing alone, 512x512 to 224x224", 32, lambda: processor([image] * 32))
