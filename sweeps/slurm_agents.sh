#!/bin/bash
# Agents of one sweep, one GPU each: sbatch --array=1-8 sweeps/slurm_agents.sh ENTITY/PROJECT/SWEEP
# The data: EMAAE_TRAIN_DIR, EMAAE_VAL_DIR and EMAAE_TEST_DIR in the environment of sbatch.
#SBATCH --job-name=emaae-agent
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt
set -u
sweep=${1:?give the sweep: sbatch --array=1-8 $0 ENTITY/PROJECT/SWEEP}
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
source .venv/bin/activate

# In the background, since the shell handles signals only between commands. Without --forward-signals
# the agent would end alone on a signal and leave its run on the GPU.
wandb agent --forward-signals "$sweep" &
agent=$!
stopped=
trap 'stopped=yes; kill -TERM $agent 2>/dev/null' TERM INT
wait $agent
status=$?
if [ -n "$stopped" ]; then
    wait $agent
    # The time limit or a preemption: requeue the job, which continues the sweep.
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit $status
