#!/bin/sh
# Builds the program for NVIDIA GPUs on any Linux machine, with a GPU or without, and prints where it lies and how large it is.
#
#   scripts/build-cuda.sh [cargo's arguments]
#
# CUDA_COMPUTE_CAP (default 80) is the oldest GPU that it shall run on: 75, 80, 86, 89, 90, 100; newer ones run it too.
# CUDA_HOME (default: fetched into target/cuda-toolkit) is the toolkit.
set -eu

cd "$(dirname "$0")/.."
if [ -z "${CUDA_HOME:-}" ]; then
    CUDA_HOME=$PWD/target/cuda-toolkit
    sh scripts/cuda-toolkit.sh "$CUDA_HOME"
fi
export CUDA_HOME CUDA_PATH="$CUDA_HOME" CUDA_ROOT="$CUDA_HOME" CUDA_TOOLKIT_ROOT_DIR="$CUDA_HOME"
export PATH="$CUDA_HOME/bin:$PATH" LIBRARY_PATH="$CUDA_HOME/lib:$CUDA_HOME/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
export RUSTFLAGS="${RUSTFLAGS:-} -L native=$CUDA_HOME/lib -L native=$CUDA_HOME/lib/stubs -C link-arg=-Wl,--allow-shlib-undefined"
cargo "${CARGO_COMMAND:-build}" --release --locked --features cuda --target-dir "${CARGO_TARGET_DIR:-target/cuda}" "$@"
if [ "${CARGO_COMMAND:-build}" = build ]; then
    built=${CARGO_TARGET_DIR:-target/cuda}/release/erase-concept
    strip -o "$built.stripped" "$built"
    size=$(wc -c <"$built.stripped")
    packed=$(gzip -9 -c "$built.stripped" | wc -c)
    mv "$built.stripped" "$built"
    echo "$built: $((size / 1048576)) MiB, $((packed / 1048576)) MiB compressed"
    echo "It needs NVIDIA's driver, and libcudart, libcublas, libcublasLt and libcurand of CUDA 13: in the folder lib beside it, in"
    echo "$CUDA_HOME/lib, or where the system looks (LD_LIBRARY_PATH)."
fi
