#!/bin/bash
# Runs docs/cluster/slurm.sh for real: a Slurm of one node on this machine, from Debian's packages, an array of four tasks on the
# demo, one of them killed and requeued, the merge as a dependent job, and the comparison with one run. Needs root (it starts munged,
# slurmctld and slurmd, and stops them again), and:
#
#   apt-get install slurm-wlm
#   cargo build --release
#   docs/cluster/try_slurm.sh [WORK FOLDER]
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
program=${PROGRAM:-$repository/target/release/erase-concept}
work=${1:-$(mktemp -d)}
mkdir -p "$work"/{state,spool,log}
cd "$work"
host=$(hostname -s)
cpus=$(nproc)

started=()
stop() {
    [ ${#started[@]} -eq 0 ] || kill "${started[@]}" 2>/dev/null || true
}
trap stop EXIT

# munge: one key, one daemon of our own
head -c 1024 /dev/urandom >munge.key
chmod 400 munge.key
chown munge: munge.key "$work" "$work"/log
chmod 755 "$work"
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --force --key-file="$work/munge.key" \
    --socket="$work/munge.socket" --pid-file="$work/log/munged.pid" --log-file="$work/log/munged.log" \
    --seed-file="$work/log/munged.seed" &
started+=($!)

cat >slurm.conf <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/log/slurmctld.pid
SlurmdPidFile=$work/log/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
slurmctld -D >log/slurmctld.log 2>&1 &
started+=($!)
slurmd -D >log/slurmd.log 2>&1 &
started+=($!)
for _ in $(seq 60); do
    sinfo -h -o %T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo

{
    echo "case_number,prompt,evaluation_seed,evaluation_guidance"
    for i in $(seq 0 "${ROWS:-23}"); do
        echo "$i,a red star,$i,7"
    done
} >set.csv
export PROGRAM=$program MODEL=demo PROMPTS=$work/set.csv OUT=$work/audit FLAGS="--steps ${STEPS:-20} --batch-size 1"

job=$(sbatch --parsable --array=1-4 "$repository/docs/cluster/slurm.sh")
echo "array $job submitted"
# kill a task in the middle of its work, without warning, and let Slurm start it again
for _ in $(seq 600); do
    [ "$(cat audit/parts/1/manifest.jsonl 2>/dev/null | wc -l)" -ge 3 ] && break
    sleep 0.1
done
scontrol requeue "${job}_1" && echo "task 1 requeued while it had $(($(wc -l <audit/parts/1/manifest.jsonl) - 1)) pictures"
merge=$(sbatch --parsable --dependency="afterok:$job" --output=merge.log "$repository/docs/cluster/slurm.sh" merge)
echo "merge $merge submitted"
while squeue -h -o "%i %T %r" | tee queue | grep -q .; do
    sleep 1
done
grep -h "there already" audit-"${job}"_1.log
tail -qn 1 audit-"${job}"_*.log
cat merge.log

"$program" audit --model demo --prompts set.csv $FLAGS --output one --quiet
rm one/run.json audit/whole/run.json
diff -r one audit/whole
echo "the merged audit equals one run: $(find one -type f | wc -l) files"
