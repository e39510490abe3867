#!/usr/bin/env bash
# A training as a Slurm job: Ray starts on every node of the job, trains, and ends with it.
#   (umask 077; ray get-auth-token --generate)     # once, into ~/.ray/auth_token, which all nodes see
#   sbatch cluster/slurm.sh --preset stylegan2-lite-gpu --data /shared/data/films --out /shared/runs/first
# Two minutes before its time is up the job saves a checkpoint and queues again to go on. When it is preempted it does
# so only where slurm.conf has PreemptParameters=send_user_signal, and a GraceTime: ask who runs the cluster. Without,
# a job that is queued again goes on from its newest checkpoint.
#SBATCH --job-name=medgan
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
# Whole nodes: Ray takes a node's memory and ports for its own.
#SBATCH --exclusive
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
set -a
# shellcheck source=cluster/ray.env
. cluster/ray.env
set +a
export PATH="$PWD/.venv/bin:$PATH"
token=${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}
if [ ! -s "$token" ]; then
    echo "slurm.sh: no token: give \`(umask 077; ray get-auth-token --generate)\` once" >&2
    exit 2
fi
if [ -n "$(find -L "$token" -perm /077)" ]; then
    echo "slurm.sh: others can read the token: chmod 600 $token, and make a new one where others had time to" >&2
    exit 2
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Not --ip-address: on many systems the name of a host stands for a loopback address.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # so that two jobs on one node do not meet
# On every node a folder of this job's, closed to others, by a name that nobody can guess and take first.
# Ray's sockets lie there, whose paths have 107 bytes at most: 68 of them are Ray's.
own=mg-$(tr -dc a-z0-9 </dev/urandom | head -c 8 || true)
export RAY_TMPDIR="${RAY_TMPDIR:-${TMPDIR:-/tmp}}/$own"
if [ "$(printf %s "$RAY_TMPDIR" | wc -c)" -gt 39 ]; then RAY_TMPDIR=/tmp/$own; fi
export MEDGAN_JOB_FOLDER="${TMPDIR:-/tmp}/$own"
export MEDGAN_CACHE="${MEDGAN_CACHE:-$MEDGAN_JOB_FOLDER/cache}"
on_nodes() {
    srun --overlap sh -c "$1"
}
# shellcheck disable=SC2016 # it is for the shells on the nodes
remove_folders() {
    on_nodes 'rm -rf "$RAY_TMPDIR" "$MEDGAN_JOB_FOLDER"' || true
}
# srun no longer takes it over from sbatch; without, each step has one CPU.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Python from a file server may take minutes to start on the last node (Ray's own setting: 30 s).
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Ray stops with the first signal it gets: only this job's driver is told. Queueing again ends what is left of Ray.
# shellcheck disable=SC2016 # both are for the shell on the head
{
    note='echo $$ >"$RAY_TMPDIR/driver" && exec python jobs/train.py "$@"'
    tell='kill "$0" "$(cat "$RAY_TMPDIR/driver")" 2>/dev/null'
}
driver() {
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" sh -c "$tell" "$1"
}
stop() {
    trap '' TERM
    driver -TERM || true
    while driver -0; do sleep 2; done
    trap - EXIT
    remove_folders
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop TERM
trap remove_folders EXIT

# shellcheck disable=SC2016
on_nodes 'umask 077
mkdir -p "${RAY_TMPDIR%/*}" "${MEDGAN_JOB_FOLDER%/*}"
mkdir "$RAY_TMPDIR" && { [ "$RAY_TMPDIR" = "$MEDGAN_JOB_FOLDER" ] || mkdir "$MEDGAN_JOB_FOLDER"; }'
srun ray symmetric-run --address "$address:$port" --min-nodes "${#nodes[@]}" --dashboard-host 127.0.0.1 \
    --num-cpus "$SLURM_CPUS_PER_TASK" --disable-usage-stats -- sh -c "$note" sh "$@" &
step=$!
wait "$step"
