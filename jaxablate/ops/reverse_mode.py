"""What is said where forward mode is asked of a function whose derivative is written by hand, for reverse mode.

JAX has one of the two for such a function. Forward mode over reverse (`jax.jvp` of `jax.grad`, `jax.hessian`) works.
"""

import contextlib
from collections.abc import Iterator

from jaxablate.errors import ConfigError


@contextlib.contextmanager
def reverse_mode_only(what: str) -> Iterator[None]:
    """Around the call of such a function: one error in our words.

    Inside `jax.jit`, and at the call of what `jax.linearize` returns, the same is refused in JAX's words.

    Raises:
      ConfigError: `jax.jvp` or `jax.jacfwd` is applied to the block.
    """
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ConfigError(f"{what} have no forward-mode derivative (jax.jvp, jax.jacfwd, jax.linearize); take a "
                          "reverse-mode one (jax.grad, jax.vjp, jax.jacrev), or forward mode over that") from error
