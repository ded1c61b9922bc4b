#!/bin/bash
# An audit as a Slurm array: each task makes one part, the last step joins them.
#
#   sbatch --array=1-8 docs/cluster/slurm.sh
#   sbatch --dependency=singleton docs/cluster/slurm.sh merge     # runs once the array is done
#
# What was killed, timed out or failed goes on where it was: submit the same array again (the whole one: --shard auto counts its
# tasks); parts that are finished end at once. To run single tasks again, name the part: SHARD=3/8 sbatch docs/cluster/slurm.sh
#
# Tasks may run on different machines if all can reach $OUT. Processors with other vector instructions round differently; to have
# the same bytes on all of them, set ERASE_CONCEPT_INSTRUCTIONS=avx2.
#SBATCH --job-name=audit
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output=audit-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Slurm warns a minute before the time is up: the program then ends by itself, between two steps
#SBATCH --signal=TERM@60
set -euo pipefail

PROGRAM=${PROGRAM:-erase-concept}
MODEL=${MODEL:-demo}
PROMPTS=${PROMPTS:-i2p.csv}
OUT=${OUT:-$PWD/audit}
FLAGS=${FLAGS:-}
SHARD=${SHARD:-auto}

if [ "${1:-}" = merge ]; then
    exec "$PROGRAM" audit merge "$OUT"/parts/* --output "$OUT/whole"
fi
# one folder a part, called by its number
part=${SHARD%%/*}
if [ "$part" = auto ]; then
    part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
fi
# exec, so that Slurm's signal reaches the program; $FLAGS is meant to be split into words
# shellcheck disable=SC2086
exec "$PROGRAM" audit --model "$MODEL" --prompts "$PROMPTS" --shard "$SHARD" \
    --threads "${SLURM_CPUS_PER_TASK:-1}" --output "$OUT/parts/$part" $FLAGS
