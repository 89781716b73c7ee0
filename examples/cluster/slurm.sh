#!/bin/bash
# Two nodes with four GPUs each, and a process for each GPU: sbatch slurm.sh
# SLURM tells all processes five minutes before the hours are over. They save and exit with 130, and
# the job waits in the queue again, where the same command goes on. A process that is lost ends the
# others, and the job goes on too, but not without end. srun is told the cores of a process again,
# because since SLURM 22.05 it does not take over what sbatch was told.
#SBATCH --job-name=distillkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" python -m distillkit fit \
  domain=video method=dmd trainer=shard trainer.devices=4 trainer.num_nodes=2 \
  --out runs/video-dmd --ckpt_path last
code=$?
if [ "$code" -ge 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
