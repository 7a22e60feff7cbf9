"""Any Flax Linen module as a model of named activations (`sites`), without changing it.

`flax.linen.intercept_methods` calls a function of ours in the place of every method of every submodule. The output of
a method is a site, by the module's path: ``layer_0.mlp`` is what the module ``mlp`` in ``layer_0`` gives when it is
called, ``embed.attend`` what another method of it gives.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxablate.circuits.sites import Edit, SiteModel
from jaxablate.types import Params


def from_linen(module: nn.Module, *, call: Callable[[Any, jax.Array], jax.Array] | None = None, inputs: bool = False
               ) -> SiteModel:
    """A `SiteModel` whose sites are the outputs, and if wanted the inputs, of all submodules of a module.

    Names. ``path`` of a call, ``path.method`` of another method; an output of several arrays has ``path[0]``,
    ``path.field`` and so on; the second call of the same method ``path#2``. With ``inputs``, ``path.input`` is what is
    given to it, or ``path.input[1]`` the second of several. Private methods (``_name``) and ``setup`` have none.
    Modules in `nn.scan`, `nn.remat` or `nn.jit` cannot be edited; `sites.problem` leaves them out or, asked for one,
    says so. Each call of this function gives a new model, for which everything is compiled anew.

    Args:
      module: not bound; its variables are given as ``params``: ``{"params": ..., ...}``, or what is under "params".
      call: (bound module, tokens) -> logits, for modules that take more than tokens or give more than logits:
        ``lambda m, tokens: m(tokens, tokens != 0).logits``.
      inputs: whether inputs are sites, too.

    Example:
      >>> module = nn.Sequential([nn.Embed(5, 4), nn.Dense(5)])
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 2), int))
      >>> from jaxablate.circuits.sites import discover
      >>> found, logits = discover(from_linen(module), variables, length=2)
      >>> found, logits
      ({'layers_0': (2, 4), 'layers_1': (2, 5)}, 5)
    """

    def model(params: Params, tokens: jax.Array, edit: Edit) -> jax.Array:
        calls: Counter[str] = Counter()

        def named(name: str, values: Any) -> Any:
            """The values with each floating-point array edited."""
            leaves, structure = jax.tree_util.tree_flatten_with_path(values)
            out = []
            for path, x in leaves:
                of_several = jax.tree_util.keystr(path)
                arrays = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
                out.append(edit(name + of_several, x) if arrays else x)
            return jax.tree_util.tree_unflatten(structure, out)

        def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            name = _name(context)
            if name is None:
                return method(*args, **kwargs)
            calls[name] += 1
            name = name if calls[name] == 1 else f"{name}#{calls[name]}"
            if inputs:
                args = (named(f"{name}.input", args[0]), ) if len(args) == 1 else named(f"{name}.input", args)
            return named(name, method(*args, **kwargs))

        variables = params if "params" in params else {"params": params}
        with nn.intercept_methods(intercept):
            return module.apply(variables, tokens, method=call)  # pyright: ignore[reportReturnType]

    return model


def _name(context: nn.module.InterceptorContext) -> str | None:
    """Name of what a method gives; None where it has none."""
    method, path = context.method_name, context.module.path
    if method == "setup" or (method.startswith("_") and method != "__call__"):
        return None
    parts = [*path, *([] if method == "__call__" else [method])]
    return ".".join(parts) if path else None  # the whole module's output is the logits
