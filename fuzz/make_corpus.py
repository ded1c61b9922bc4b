"""Writes the seeds of the fuzzers' corpora: python3 fuzz/make_corpus.py"""
import hashlib
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent


def weights(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "empty": weights({}),
    "one": weights({"conv_in.weight": entry("F16", [2, 3], 0, 12)}, bytes(12)),
    "metadata": weights({"__metadata__": {"format": "pt", "modelspec.title": "é\n"}, "a": entry("F32", [1], 0, 4)}, bytes(4)),
    "two": weights({"b": entry("I64", [1, 1], 8, 16), "a": entry("BF16", [4], 0, 8)}, bytes(16)),
    "scalar": weights({"s": entry("F64", [], 0, 8)}, bytes(8)),
    "nothing": weights({"n": entry("F32", [0, 4], 0, 0)}),
    "overlap": weights({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6)),
    "hole": weights({"a": entry("U8", [2], 2, 4)}, bytes(4)),
    "short": weights({"a": entry("F32", [4], 0, 16)}, bytes(3)),
    "long": weights({"a": entry("U8", [1], 0, 1)}, bytes(9)),
    "lie": weights({}, length=2**63),
    "overflow": weights({"a": entry("F32", [2**62, 2**62], 0, 4)}, bytes(4)),
    "unknown": weights({"a": entry("F7", [1], 0, 1)}, bytes(1)),
    "twice": weights(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "padded": weights(json.dumps({"a": entry("U8", [1], 0, 1)}).encode() + b"     ", b"x"),
    "nested": weights(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "html": b"<!DOCTYPE html><html></html>",
    "pickle": b"\x80\x02}q\x00.",
    "zip": b"PK\x03\x04" + bytes(40),
}
PROMPTS = {
    "i2p": ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,"
           "lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n"
           "0,\"a \"\"red\"\" star, by a lake\",\"hate, shocking\",0,31.3,0.0,1,0.5,0.1,https://x,4048790253,7,512,768,sd14,17\n",
    "esd": "case_number,prompt,evaluation_seed,artist\n5,a lake,3,Monet\n",
    "coco": "case_number,source,prompt,evaluation_seed,coco_id\n9,coco,a lake,8,77\n",
    "spm": ",prompt,sd_seed,sd_guidance_scale,sd_image_width\n4,a lake,7,7.5,512\n",
    "odd": "\ufeffPrompt;x,\"seed\"\r\n\"two\nlines 🌟\",5.0\r\n,,\r\n\"open,1",
    "plain": "prompt\na star\n\nb\n",
}


SMALL = ("name = 'old car'\nkind = 'style'\nforget = ['a car', \"cars\"]\nanchors = ['a tree', 'trees']\nretain = ['', 'a house']\n"
         "[verify]\nforget = ['my car']\nsynonyms = []\nretain = [{ prompt = 'a bus', labels = ['shape: bus'] }]\n[detect]\nlabels = []\n")
CONCEPT = {
    "small": SMALL,
    "object": SMALL.replace("old car", "x").replace("style", "object").replace("labels = []", 'labels = ["shape: x"]'),
    "inline": 'name = "a"\nkind = "identity"\nforget = ["b"]\nanchors = ["c"]\nretain = ["d"]\n'
              'verify = { forget = ["e"], retain = [{ prompt = "f" }] }\ndetect = { labels = [] }\n',
}


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu")
          + b"K\x04tQK\x00K\x02K\x02\x86K\x02K\x01\x86\x89ccollections\nOrderedDict\n)RtR")
PICKLE = {
    "data": b"\x80\x02}q\x00(" + text(b"w") + TENSOR + b"u.",
    "nested": b"\x80\x02}(" + text(b"state_dict") + b"}(" + text(b"w") + TENSOR + b"uu.",
    "call": b"\x80\x02cposix\nsystem\n" + text(b"true") + b"\x85R.",
    "number": b"\x80\x02K\x01.",
    "deep": b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
    "memo": b"\x80\x02]q\x00h\x00h\x00\x86q\x01h\x01h\x01\x86q\x02h\x02h\x02\x86.",
    "bomb": b"\x80\x02)" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b".",
    "empty": b"",
}


def frame(content):
    """A Zstandard frame that holds the content as it is."""
    size = b"\x60" + struct.pack("<H", len(content) - 256) if len(content) > 255 else b"\x20" + bytes([len(content)])
    return b"\x28\xb5\x2f\xfd" + size + struct.pack("<I", len(content) << 3 | 1)[:3] + content


def repeated(byte, count):
    """A Zstandard frame of one byte, repeated."""
    size = struct.pack("<I", count)
    return b"\x28\xb5\x2f\xfd\xa0" + size + struct.pack("<I", count << 3 | 3)[:3] + byte


def packed(content):
    return b"\x02" + struct.pack("<I", len(frame(content))) + frame(content)


def raw(content):
    return b"\x01" + content


def places(*gaps):
    return struct.pack("<II", len(gaps), len(gaps)) + raw(bytes(gaps)) if gaps else bytes(4)


def blocks(*changes):
    return b"".join(struct.pack("<I", len(change)) + change for change in changes)


def a_text(content):
    return struct.pack("<I", len(content)) + frame(content)


# what fuzzing::patch has in the place of the base
WEIGHTS = {"a": entry("F32", [40], 0, 160), "b": entry("F16", [2, 4], 160, 176), "c": entry("U8", [5], 176, 181)}
LISTED = b"\x00" + places(3, 0, 7) + raw(b"\x02\x01\x09") + b"\x00" + packed(b"\x01\x02\x03") + b"\x00"
MIXED = b"\x01" + places(5) + raw(b"\xff") * 2 + raw(bytes(range(7)))
ALL = b"\x01" + places() + packed(bytes(range(5)))
UNET = "unet/diffusion_pytorch_model.safetensors"


def patch(parts, files=None, layout="folder", version=1):
    files = files or [
        {"path": "README.md", "base": None, "result": "a" * 64, "change": "text"},
        {"path": UNET, "base": "b" * 64, "result": "c" * 64, "change": "weights"},
        {"path": "vae/config.json", "base": "d" * 64, "result": "d" * 64},
    ]

    def model(side):
        if layout != "folder":
            return files[0][side]
        lines = "".join(f"{file['path']}\0{file[side]}\n" for file in files if file[side])
        return hashlib.sha256(lines.encode()).hexdigest()

    metadata = {"patch.format": f"erase-concept.patch/{version}", "patch.base_sha256": model("base"), "patch.result_sha256": model("result")}
    parts = {"index": json.dumps({"layout": layout, "files": files}).encode(), **parts}
    header, at = {"__metadata__": metadata}, 0
    for name, content in parts.items():
        header[name] = entry("U8", [len(content)], at, at + len(content))
        at += len(content)
    return weights(header, b"".join(parts.values()))


def header(metadata):
    return a_text(json.dumps({"__metadata__": metadata, **WEIGHTS}).encode())


CHANGES = {"result:README.md": a_text(b"no stars"), f"{UNET}:a": blocks(LISTED), f"{UNET}:b": blocks(MIXED), f"{UNET}:c": blocks(ALL)}
HEADERS = {"base:" + UNET: header({}), "result:" + UNET: header({"erase.concept": "star"})}
SINGLE = [{"path": "model.safetensors", "base": "a" * 64, "result": "b" * 64, "change": "weights", "dropped": {"tensors": 2, "first": "e"}}]
PATCH = {
    "folder": patch(CHANGES),
    "headers": patch({**CHANGES, **HEADERS}),
    "single": patch({"model.safetensors:a": blocks(LISTED), "model.safetensors:b": blocks(MIXED)}, SINGLE, "single-file"),
    "newer": patch({}, version=2),
    "outside": patch({}, [{"path": "../x", "base": "a" * 64, "result": "a" * 64}]),
    "bomb": patch({**CHANGES, f"{UNET}:a": blocks(b"\x01" + places() + b"\x02" + struct.pack("<I", 13) + repeated(b"x", 100000))}),
    "text-bomb": patch({"result:README.md": struct.pack("<I", 100) + repeated(b"x", 100000)}),
    "cut": patch({**CHANGES, f"{UNET}:a": blocks(LISTED)[:-3]}),
    "too-many": patch({**CHANGES, f"{UNET}:c": blocks(ALL, ALL)}),
}


def main():
    for name, files in {"safetensors": SAFETENSORS, "pickle": PICKLE, "prompts": PROMPTS, "patch": PATCH}.items():
        folder = HERE / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, content in files.items():
            (folder / stem).write_bytes(content if isinstance(content, bytes) else content.encode())
    archive = ROOT / "tests/fixtures/single_file/torch.ckpt"
    (HERE / "corpus" / "pickle" / "torch").write_bytes(archive.read_bytes())
    folder = HERE / "corpus" / "concept"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("star", "red"):
        (folder / name).write_text((ROOT / "prompts" / f"{name}.toml").read_text(encoding="utf-8"), encoding="utf-8")
    for stem, content in CONCEPT.items():
        (folder / stem).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
