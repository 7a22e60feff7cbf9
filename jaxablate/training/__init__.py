"""Training: state, step, loop, checkpoints, metrics, preemption."""
