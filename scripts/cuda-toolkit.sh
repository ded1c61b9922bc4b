#!/bin/sh
# Puts a CUDA 13.0 toolkit, enough to build this program, into a folder: the compiler and libraries from NVIDIA's Python wheels.
# No GPU, driver or root is needed; Python with pip is. All of one version: different 13.x do not mix (cccl checks).
#
#   scripts/cuda-toolkit.sh FOLDER
set -eu

folder=${1:?usage: cuda-toolkit.sh FOLDER}
if [ -f "$folder/complete" ]; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching CUDA 13.0 into $folder" >&2
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --dest "$work" \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35
for wheel in "$work"/*.whl; do
    "${PYTHON:-python3}" -m zipfile -e "$wheel" "$work/unpacked"
done
rm -rf "$folder"
mkdir -p "$folder"
cp -R "$work"/unpacked/nvidia/cu13/. "$folder"/
chmod -R u+w "$folder"
chmod +x "$folder"/bin/* "$folder"/nvvm/bin/* 2>/dev/null || true
# the linker looks for names without versions
for library in "$folder"/lib/lib*.so.*; do
    plain=${library%%.so.*}.so
    [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
done
# the driver's library comes with the driver; linking needs the names of its functions
mkdir -p "$folder/lib/stubs"
grep -ohE '\bcu[A-Z][A-Za-z0-9]+(_v[0-9]+)?(_ptsz|_ptds)?\b' "$folder/include/cuda.h" | sort -u |
    sed 's/.*/void &(void) {}/' >"$work/stub.c"
"${CC:-cc}" -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$folder/lib/stubs/libcuda.so" "$work/stub.c"
ln -sfn lib "$folder/lib64"
touch "$folder/complete"
