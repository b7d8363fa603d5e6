#!/bin/bash
# One sweep on many nodes without an account: every node claims points in a journal on a shared disk.
# sbatch --array=1-8 sweeps/slurm_local.sh sweeps/alpha_schedules.yaml /shared/alpha_schedules
# The data: EMAAE_TRAIN_DIR, EMAAE_VAL_DIR and EMAAE_TEST_DIR in the environment of sbatch.
#SBATCH --job-name=emaae-sweep
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt
set -u
file=${1:?give the sweep file: sbatch --array=1-8 $0 FILE.yaml DIR}
out=${2:?give a folder on a disk that all nodes share: sbatch --array=1-8 $0 FILE.yaml DIR}
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
source .venv/bin/activate

python -m emaae sweep "$file" --out "$out" --storage "$out/journal.log" &
runner=$!
stopped=
trap 'stopped=yes; kill -TERM $runner 2>/dev/null' TERM INT
wait $runner
status=$?
if [ -n "$stopped" ]; then
    wait $runner
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit $status
