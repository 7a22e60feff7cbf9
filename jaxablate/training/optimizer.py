"""AdamW with clipping and a warm-up / cosine schedule, from a configuration."""

import optax

from jaxablate.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that follows ``count`` earlier ones.

    Warm-up is linear and never zero: update ``s`` (from 0) of ``w`` has ``peak * (s + 1) / w``. Cosine then falls from
    the peak over the remaining ``n = steps - w`` updates: ``peak * (f + (1 - f) * (1 + cos(pi * s / n)) / 2)``, so that
    ``f = final_fraction`` is reached as the last update ends.

    Args:
      config: peak, shape and warm-up.
      steps: updates of the whole run.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        main = optax.cosine_decay_schedule(peak, steps - config.warmup_steps, alpha=config.final_fraction)
    if config.warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; every parameter decays alike, as in the papers' PyTorch code.

    Args:
      config: settings.
      steps: updates of the whole run, the length of the schedule.
    """
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, adamw)
