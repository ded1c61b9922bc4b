"""A second opinion on the demo's figures: a convolutional network that has nothing in common with the program or its classifier.

It is trained on pictures that world.py draws (not on anything a diffusion model made), half of them with blur, shifts in colour and
noise, half as the demo's autoencoder gives them back from latents that are a little off, and reads pictures that `erase-concept bench
--keep-images` left.

    pip install torch diffusers pillow numpy
    python3 tests/judge/judge.py train judge.pt         # --device cuda: where one is at hand
    erase-concept bench --grid presets --keep-images ... -o DIR
    python3 tests/judge/judge.py count judge.pt DIR

`count` prints a line a run: what the classifier counted (from results.jsonl) and what this judge counts on the same files; and how often
it sees a style in pictures of the base whose prompt states another: its own errors, and the base's.
"""
import argparse
import json
import pathlib
import random
import re
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import world

AXES = {"shape": world.SHAPES, "color": list(world.COLORS), "style": world.STYLES, "background": list(world.BGS)}
ATTRIBUTE = {"shape": "shape", "color": "color", "style": "style", "background": "bg"}
WORDS = {word: f"{axis}: {word}" for axis, words in AXES.items() if axis != "background" for word in words}
WORDS |= {synonym: f"shape: {shape}" for shape, synonyms in world.SYN.items() for synonym in synonyms}


class Judge(nn.Module):
    """Six convolutions with batch norm, the mean and the largest of each channel, one linear head an axis."""

    def __init__(self):
        super().__init__()
        def layer(i, o, stride):
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        self.body = nn.Sequential(layer(3, 24, 1), layer(24, 48, 2), layer(48, 64, 2), layer(64, 96, 1),
                                  layer(96, 128, 2), layer(128, 128, 1))
        self.heads = nn.ModuleDict({axis: nn.Linear(256, len(words)) for axis, words in AXES.items()})

    def forward(self, x):
        x = self.body(x)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return {axis: head(x) for axis, head in self.heads.items()}


def pixels(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)


def scene(rng):
    attributes = world.sample_attrs(rng)
    return pixels(world.render(attributes, rng)), [words.index(attributes[ATTRIBUTE[axis]])
                                                   for axis, words in AXES.items()]


def worn(x, generator):
    """As pictures are worn: blur, a shift of colours, noise."""
    rand = lambda *shape: torch.rand(shape, generator=generator).to(x.device)
    n = len(x)
    sigma = rand(n) * 1.2
    d = torch.arange(-2, 3, device=x.device).float()
    kernel = torch.exp(-d[None] ** 2 / (2 * (sigma[:, None] + 0.05) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    flat = x.reshape(1, n * 3, *x.shape[2:])
    weights = kernel.repeat_interleave(3, 0)
    flat = F.conv2d(F.pad(flat, (2, 2, 0, 0), "replicate"), weights[:, None, None, :], groups=3 * n)
    flat = F.conv2d(F.pad(flat, (0, 0, 2, 2), "replicate"), weights[:, None, :, None], groups=3 * n)
    x = flat.reshape(x.shape)
    gain, shift = 1 + 0.2 * (rand(n, 1, 1, 1) - 0.5), 0.16 * (rand(n, 3, 1, 1) - 0.5)
    noise = torch.randn(x.shape, generator=generator).to(x.device) * 0.08 * rand(n, 1, 1, 1)
    return (x * gain + shift + noise).clamp(-1, 1)


@torch.no_grad()
def through_the_autoencoder(x, generator, device):
    """What the demo's autoencoder makes of pictures, from latents with noise of up to a tenth of their spread."""
    from diffusers import AutoencoderKL
    vae = AutoencoderKL.from_pretrained(HERE.parent.parent / "weights" / "demo" / "vae").to(device).eval()
    made = []
    for rows in x.split(64):
        latents = vae.encode(rows.to(device)).latent_dist.mode()
        strength = 0.1 * torch.rand(len(rows), 1, 1, 1, generator=generator) * latents.std().cpu()
        noise = torch.randn(latents.shape, generator=generator) * strength
        made.append(vae.decode(latents + noise.to(device)).sample.clamp(-1, 1).cpu())
    return torch.cat(made)


def train(path, scenes, epochs, device):
    torch.manual_seed(0)
    rng, generator = random.Random(1), torch.Generator().manual_seed(2)
    drawn = [scene(rng) for _ in range(scenes)]
    x, y = torch.stack([s[0] for s in drawn]), torch.tensor([s[1] for s in drawn]).to(device)
    decoded = through_the_autoencoder(x, generator, device).to(device)
    x = x.to(device)

    def seen(rows):
        half = len(rows) // 2
        return torch.cat([worn(x[rows[:half]], generator), decoded[rows[half:]]])

    held = scenes // 10
    judge, batch = Judge().to(device), 128
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=1e-3)
    steps = epochs * ((scenes - held) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        order = held + torch.randperm(scenes - held, generator=generator)
        judge.train()
        for rows in order.split(batch)[:(scenes - held) // batch]:
            found = judge(seen(rows))
            loss = sum(F.cross_entropy(found[axis], y[rows, i]) for i, axis in enumerate(AXES))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        judge.eval()
        with torch.no_grad():
            found = judge(seen(torch.arange(held)))
        right = {axis: (found[axis].argmax(1) == y[:held, i]).float().mean().item() for i, axis in enumerate(AXES)}
        print(epoch, f"loss {loss.item():.3f}", {axis: round(value, 4) for axis, value in right.items()}, flush=True)
    torch.save(judge.cpu().state_dict(), path)


def stated(prompt):
    """The labels that a prompt states, as in the concept files."""
    subject, _, where = prompt.partition(" on a ")
    return [WORDS[word] for word in subject.split() if word in WORDS] + [
        f"background: {word}" for word in where.split() if word in world.BGS]


def read(judge, folder):
    """For each group, each picture's prompt and the labels that the judge gives it, in order."""
    groups = {}
    files = sorted(folder.glob("*.png"))
    for start in range(0, len(files), 128):
        images = [Image.open(path) for path in files[start:start + 128]]
        with torch.no_grad():
            found = judge(torch.stack([pixels(image.convert("RGB")) for image in images]))
        for i, (path, image) in enumerate(zip(files[start:], images)):
            prompt = image.info["parameters"].split("\n")[0]
            labels = {axis: f"{axis}: {AXES[axis][logits[i].argmax()]}" for axis, logits in found.items()}
            groups.setdefault(re.match(r"[a-z]+", path.name)[0], []).append((prompt, labels))
    return groups


def judged(groups, label):
    """Concept rate, synonym rate, and by axis the accuracy on everything else (the concept's own label is not asked for)."""
    axis = label.split(":")[0]
    rate = {group: np.mean([labels[axis] == label for _, labels in rows])
            for group, rows in groups.items() if group != "retain"}
    right = {}
    for prompt, labels in groups["retain"]:
        for wanted in stated(prompt):
            if wanted != label:
                at = wanted.split(":")[0]
                right.setdefault(at, []).append(labels[at] == wanted)
    return rate.get("concept"), rate.get("synonym"), {at: np.mean(values) for at, values in right.items()}


def count(path, folder):
    judge = Judge()
    judge.load_state_dict(torch.load(path, weights_only=True))
    judge.eval()
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
    print("| run | concept %, classifier | judge | synonyms %, classifier | judge | mean drop, classifier | judge |")
    print("|---|---|---|---|---|---|---|")
    known, far = {}, 0.0
    for line in open(folder / "results.jsonl", encoding="utf-8"):
        outcome = json.loads(line)
        concept, counts = outcome["concept"], outcome["counts"]
        axis = "shape" if concept in world.SHAPES else "style" if concept in world.STYLES else "color"
        pictures = folder / "pictures"
        variant = re.sub(r"[^\w.]", "-", outcome["variant"])
        run = pictures / variant / f"{concept}-s{outcome['seed']}" / "images" / "after"
        if not any(run.glob("*.png")):
            print(f"| {outcome['variant']}, {concept}, seed {outcome['seed']} | no pictures were kept | | | | | |")
            continue
        if concept not in known:
            known[concept] = judged(read(judge, pictures / "before" / concept / "images" / "before"), f"{axis}: {concept}")
        before = known[concept]
        after = judged(read(judge, run), f"{axis}: {concept}")
        drop = 100 * np.mean([before[2][at] - after[2][at] for at in before[2]])
        fraction = lambda rate: rate and rate["after"]["hits"] / rate["after"]["n"]
        print(f"| {outcome['variant']}, {concept}, seed {outcome['seed']} | {percent(fraction(counts['rate']))} | "
              f"{percent(after[0])} | {percent(fraction(counts['synonyms']))} | {percent(after[1])} | "
              f"{100 * counts['mean_drop']['drop']:.1f} | {drop:.1f} |", flush=True)
        far = max(far, abs(drop - 100 * counts["mean_drop"]["drop"]), 100 * abs(after[0] - fraction(counts["rate"])))
    wrong = {style: [0, 0] for style in world.STYLES}
    for concept in known:
        for prompt, labels in read(judge, pictures / "before" / concept / "images" / "before").get("retain", []):
            for other in (label for label in stated(prompt) if label.startswith("style: ")):
                for style, counts in wrong.items():
                    counts[0] += other != f"style: {style}" and labels["style"] == f"style: {style}"
                    counts[1] += other != f"style: {style}"
    print("pictures of the base whose prompt states another style: "
          + ", ".join(f"{hits} of {n} called {style}" for style, (hits, n) in wrong.items()))
    for concept, (rate, synonyms, right) in known.items():
        print(f"{concept} before, by the judge: concept {percent(rate)} %, synonyms {percent(synonyms)} %, right: "
              + ", ".join(f"{axis} {percent(value)} %" for axis, value in right.items()))
    print(f"largest difference, concept rate or mean drop: {far:.1f} points")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    one = jobs.add_parser("train", help="train the judge")
    one.add_argument("judge", type=pathlib.Path)
    one.add_argument("--scenes", type=int, default=16000)
    one.add_argument("--epochs", type=int, default=6)
    one.add_argument("--device", default="cpu")
    two = jobs.add_parser("count", help="count pictures that a bench kept")
    two.add_argument("judge", type=pathlib.Path)
    two.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    train(args.judge, args.scenes, args.epochs, args.device) if args.job == "train" else count(args.judge, args.folder)
