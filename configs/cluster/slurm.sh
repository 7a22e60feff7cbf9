#!/bin/bash
# Trains on several machines of a SLURM cluster, one process a GPU:
#
#     sbatch configs/cluster/slurm.sh --config tinystories --workdir /shared/runs/local-k8
#
# Arguments are those of `jaxablate train`. The working directory, the data (--data.cache-dir) and the Python environment
# must be on a file system that all machines see. docs/clusters.md says more.
#SBATCH --job-name=jaxablate
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Three minutes before the time is over, or when the job makes room for another, SLURM tells this script. The processes
# are told in turn: they finish their step and save it.
stopped=
stop() {
  stopped=1
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop TERM

# Where one process ends with an error, the others end within half a minute with a line of their own; SLURM waits so long.
srun --kill-on-bad-exit=0 --wait=60 \
  python -m jaxablate train --distributed --join-seconds 300 "$@" &
wait $!
code=$?
if [ -n "$stopped" ]; then # the signal ended `wait`, not the processes
  wait %1
  code=$?
  # What was saved is gone on with by the same job, in the queue again.
  [ "$code" -ne 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
