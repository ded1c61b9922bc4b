"""Whether this program and Python's huggingface_hub use each other's cache. By hand, against the tests' server:

    cargo test --release --test hub serve -- --ignored --nocapture      # prints HF_ENDPOINT=...
    HF_ENDPOINT=... python tests/hub/python_cache.py target/release/erase-concept
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub as hub

program, endpoint = Path(sys.argv[1]).resolve(), os.environ["HF_ENDPOINT"]
root = Path(tempfile.mkdtemp())
print("huggingface_hub", hub.__version__, "in", root)


def sample(home, output, *flags):
    env = os.environ | {"HF_HOME": str(root / home)}
    args = ["sample", "--model", "owner/demo", "--prompt", "a star", "--steps", "2", "--output", output, *flags]
    done = subprocess.run([program, *args], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (root / output / "00000_0.png").read_bytes(), done.stderr


# what we fetched, Python finds, whole
ours, said = sample("a", "from-us")
assert "fetching owner/demo" in said, said
cache = root / "a/hub"
folder = Path(hub.snapshot_download("owner/demo", cache_dir=cache, local_files_only=True))
files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
print("Python finds", len(files), "files of ours:", *files)
for file in files:
    assert hub.hf_hub_download("owner/demo", file, cache_dir=cache, local_files_only=True) == str(folder / file)
scan = hub.scan_cache_dir(cache)
assert not scan.warnings, scan.warnings
(repo,) = scan.repos
(revision,) = repo.revisions
assert revision.refs == {"main"} and len(revision.files) == len(files), revision
before = {path: path.stat().st_mtime_ns for path in cache.rglob("blobs/*")}
again = hub.snapshot_download("owner/demo", cache_dir=cache, allow_patterns=files)  # online
assert Path(again) == folder and {path: path.stat().st_mtime_ns for path in cache.rglob("blobs/*")} == before
print("Python, online, fetches none of them again")

# what Python fetched, we find, though it has more than we need
hub.snapshot_download("owner/demo", cache_dir=root / "b/hub")
theirs, said = sample("b", "from-python", "--offline")
assert "fetching" not in said and theirs == ours, said
theirs, said = sample("b", "from-python-online")
assert "fetching" not in said and theirs == ours, said
print("the program uses what Python fetched, offline and online, to the same picture")

# what Python fetched in part, we complete, and the other way round
hub.snapshot_download("owner/demo", cache_dir=root / "c/hub", allow_patterns=["unet/*", "*.json"])
theirs, said = sample("c", "from-both")
assert "fetching" in said and theirs == ours, said
hub.snapshot_download("owner/demo", cache_dir=root / "c/hub")
assert not hub.scan_cache_dir(root / "c/hub").warnings
print("either completes what the other began: all is well")
