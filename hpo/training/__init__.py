"""One trial's arithmetic: network, learner, epoch loop, metrics, checkpoints; no Optuna."""
