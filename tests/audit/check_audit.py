"""By hand: computes an audit's numbers again from its pictures, with transformers, SciPy and scikit-image, and compares.

    erase-concept audit --model demo --model OUT --prompts SET.csv --detector demo/clip --label ... --clip demo/clip --against demo -o AUDIT
    pip install torch transformers scipy scikit-image pillow numpy
    python3 tests/audit/check_audit.py AUDIT [--clip weights/demo/clip --tokenizer weights/demo/tokenizer]

Checked: every picture's hash, CLIP features, CLIP score and SSIM; the CLIP labels; rates with Wilson's intervals; CLIP-FID, CMMD, McNemar's
p, and the bootstrap's mean. Prints the largest difference of each; fails if one is above 1e-4 (features, scores: relative to their size).
"""
import argparse, hashlib, json, os, struct, sys
import numpy as np
import torch
from PIL import Image
from scipy import linalg, ndimage, stats
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

torch.set_grad_enabled(False)
parser = argparse.ArgumentParser()
parser.add_argument("audit")
parser.add_argument("--clip", default="weights/demo/clip")
parser.add_argument("--tokenizer", default="weights/demo/tokenizer")
args = parser.parse_args()
worst = {}


def close(name, ours, theirs, size=1.0):
    worst[name] = max(worst.get(name, 0.0), float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)))) / size)


def ssim(a, b):
    """As scikit-image writes it: gaussian_weights=True, use_sample_covariance=False, the edge of 5 pixels left out."""
    blur = lambda x: ndimage.gaussian_filter(x, 1.5, truncate=3.5)
    values = []
    for c in range(3):
        x, y = a[..., c].astype(np.float64), b[..., c].astype(np.float64)
        mx, my = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        s = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(s[5:-5, 5:-5].mean())
    return np.mean(values)


lines = [json.loads(line) for line in open(os.path.join(args.audit, "manifest.jsonl"))]
header, entries = lines[0], lines[1:]
summary = json.load(open(os.path.join(args.audit, "audit.json")))
model, processor = CLIPModel.from_pretrained(args.clip).eval(), CLIPImageProcessorPil.from_pretrained(args.clip)
tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
longest = model.config.text_config.max_position_embeddings
as_array = lambda x: (x if torch.is_tensor(x) else x.pooler_output).numpy().astype(np.float64)


def texts(prompts):
    ids = tokenizer(prompts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt").input_ids
    return as_array(model.get_text_features(input_ids=ids))


pictures, features = {}, {}
for e in entries:
    path = os.path.join(args.audit, e["file"])
    assert hashlib.sha256(open(path, "rb").read()).hexdigest() == e["sha256"], path
    key = (e["model"], e["case"], e["sample"])
    pictures[key] = np.array(Image.open(path).convert("RGB"))
    pixels = processor(Image.fromarray(pictures[key]), return_tensors="pt").pixel_values
    features[key] = as_array(model.get_image_features(pixel_values=pixels))[0]
    ours = np.frombuffer(bytes.fromhex(e["clip"]["features"]), "<f4")
    close("features", ours, features[key], np.abs(features[key]).max())
    text = texts([e["prompt"]])[0]
    cosine = features[key] @ text / np.linalg.norm(features[key]) / np.linalg.norm(text)
    close("CLIP score", e["clip"]["score"], 100 * max(cosine, 0), 100)

for detector in header["detectors"]:
    if not detector["rule"].startswith("CLIP zero-shot"):
        continue
    names = ["a photo of a " + label.split(":")[-1].strip() for label in detector["labels"]]
    t = texts(names)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    axes = {}
    for i, label in enumerate(detector["labels"]):
        axes.setdefault(label.split(":")[0] if ":" in label else "", []).append(i)
    for e in entries:
        f = features[(e["model"], e["case"], e["sample"])]
        logits = float(model.logit_scale.exp()) * (t @ (f / np.linalg.norm(f)))
        found = [detector["labels"][max(axis, key=lambda i: logits[i])] for axis in axes.values()]
        assert found == e["labels"][detector["key"]], (e, found)
        for axis, score in zip(axes.values(), e["scores"][detector["key"]]):
            p = np.exp(logits[axis] - logits[axis].max())
            close("zero-shot scores", score["score"], (p / p.sum()).max())

for m in summary["models"]:
    own = [e for e in entries if e["model"] == m["name"]]
    for key, labels in m["labels"].items():
        for label, rate in labels.items():
            hits = sum(label in e["labels"][key] for e in own)
            assert (hits, len(own)) == (rate["hits"], rate["n"])
            interval = stats.binomtest(hits, len(own)).proportion_ci(method="wilson")
            close("Wilson", [rate["low"], rate["high"]], [interval.low, interval.high])
    base = header.get("metrics", {}).get("against", {}).get("model")
    values = {metric["name"]: metric["value"] for metric in m.get("metrics", [])}
    keys = [(e["case"], e["sample"]) for e in own]
    if base and base != m["name"]:
        a = np.array([features[(base, *k)] for k in keys])
        b = np.array([features[(m["name"], *k)] for k in keys])
        x, y = ((r - r.mean(0)) / (len(r) - 1) ** 0.5 for r in (a, b))
        fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
        close("CLIP-FID", values["CLIP-FID"], fid, fid)
        a, b = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (a, b))
        k = lambda p, q: np.exp(-((p[:, None] - q[None]) ** 2).sum(-1) / 200).mean()
        close("CMMD", values["CMMD"], 1000 * (k(a, a) + k(b, b) - 2 * k(a, b)))
        close("SSIM", values["SSIM"], np.mean([ssim(pictures[(base, *k)], pictures[(m["name"], *k)]) for k in keys]))
        of = {(e["model"], e["case"], e["sample"]): e for e in entries}
        for paired in m["paired"]:
            shows = lambda name: [paired["label"] in of[(name, *k)]["labels"][paired["detector"]] for k in keys]
            before, after = shows(base), shows(m["name"])
            lost, gained = (sum(p and not q for p, q in zip(*pair)) for pair in ((before, after), (after, before)))
            assert (lost, gained) == (paired["only_before"], paired["only_after"])
            p = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
            close("McNemar", paired["p"], p)
            close("drop", paired["drop"], np.mean(before) - np.mean(after))
        scores = lambda name: np.array([of[(name, *k)]["clip"]["score"] for k in keys])
        close("CLIP score, difference", m["clip_score_difference"]["mean"], (scores(m["name"]) - scores(base)).mean())

print(f"{len(entries)} pictures; largest differences:")
for name, value in worst.items():
    print(f"  {name:24} {value:.1e}")
sys.exit(max(worst.values()) > 1e-4)
