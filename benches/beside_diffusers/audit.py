"""An audit's pictures as diffusers makes them: the demo's pipeline, 32 prompts at a time, every picture saved as PNG.

    cargo build --release
    PYTHON benches/beside_diffusers/audit.py [--pictures 128] [--steps 20]
    PYTHON benches/beside_diffusers/audit.py --pictures 2000 --rounds 1     # both sides, the whole set
    PYTHON benches/beside_diffusers/audit.py --pictures 2000 --rounds 1 --only ours

PYTHON has torch, diffusers and transformers. Both sides draw the same prompts and seeds with DDIM and guidance 7.5, one after the
other, `--rounds` times; prints pictures per second, processor seconds per picture (which another job on the machine disturbs less)
and peak memory of either, loading left out of the seconds. Of ours also what the process has in memory (the system's count) when a
tenth, half and all of the pictures are made: it should be the same.
"""
import argparse
import csv
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
STEPS, GUIDANCE, BATCH = 20, 7.5, 32


def prompts(count):
    draw = random.Random(3)
    words = [["red", "blue", "green", "pink", "yellow"], ["", "striped ", "dotted "],
             ["star", "circle", "ring", "heart", "cross", "square", "triangle"]]
    return [f"a {draw.choice(words[1])}{draw.choice(words[0])} {draw.choice(words[2])}" for _ in range(count)]


def theirs(count, steps):
    """In a process of its own, so that its memory can be told."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(
        ROOT / "weights" / "demo", safety_checker=None, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    texts = prompts(count)
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            generators = [torch.Generator().manual_seed(i) for i in rows]
            images = pipeline([texts[i] for i in rows], num_inference_steps=steps, guidance_scale=GUIDANCE,
                              generator=generators).images
            for i, image in zip(rows, images):
                image.save(f"{folder}/{i}_0.png")
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps([seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def watched(process, manifest, count):
    """MiB that a process has in memory when a tenth, half and all of the pictures are written down."""
    shares, found, lines, at = [0.1, 0.5, 1.0], [], 0, 0
    while process.poll() is None:
        time.sleep(0.05)
        try:
            with open(manifest, "rb") as file:
                file.seek(at)
                new = file.read()
            pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        at, lines = at + len(new), lines + new.count(b"\n")
        # the first line says what the audit is
        while len(found) < len(shares) and lines - 1 >= shares[len(found)] * count:
            found.append(pages * resource.getpagesize() / 2**20)
    return found


def ours(program, count, steps):
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "set.csv"
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["case_number", "prompt", "evaluation_seed"])
            writer.writerows([i, text, i] for i, text in enumerate(prompts(count)))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [program, "audit", "--model", "demo", "--prompts", table, "--steps", steps, "--guidance-scale", GUIDANCE,
                   "--scheduler", "ddim", "--batch-size", BATCH, "--output", f"{folder}/out", "--quiet"]
        running = subprocess.Popen([str(word) for word in command])
        resident = watched(running, pathlib.Path(folder) / "out" / "manifest.jsonl", count)
        if running.returncode:
            sys.exit(f"the audit ended with {running.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = json.loads((pathlib.Path(folder) / "out" / "run.json").read_text())
        assert len(list((pathlib.Path(folder) / "out" / "images").iterdir())) == count
    seconds = sum(seconds for name, seconds in run["seconds"] if name.startswith("rendering"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print("ours, in memory at 10, 50 and 100 %:", ", ".join(f"{size:.1f} MiB" for size in resident))
    return [seconds, cpu, run["peak_memory_bytes"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["ours", "diffusers"], help="one side alone")
    parser.add_argument("--program", default=str(ROOT / "target" / "release" / "erase-concept"))
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        return theirs(args.pictures, args.steps)
    found = {who: [] for who in ["diffusers", "ours"] if args.only in (None, who)}
    for _ in range(args.rounds):
        if "ours" in found:
            found["ours"].append(ours(args.program, args.pictures, args.steps))
        if "diffusers" not in found:
            continue
        command = [sys.executable, __file__, "--theirs", "--pictures", str(args.pictures), "--steps", str(args.steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found["diffusers"].append(json.loads(output.splitlines()[-1]))
    print("| | pictures per second | processor seconds per picture | peak memory |\n|---|---|---|---|")
    medians = {}
    for who, runs in found.items():
        seconds, cpu, memory = (statistics.median(column) for column in zip(*runs))
        medians[who] = seconds
        print(f"| {who} | {args.pictures / seconds:.2f} | {cpu / args.pictures:.3f} | {memory / 1e9:.2f} GB |")
    if len(medians) == 2:
        print(f"\nours over diffusers: {medians['diffusers'] / medians['ours']:.2f} times the pictures per second")


if __name__ == "__main__":
    main()
