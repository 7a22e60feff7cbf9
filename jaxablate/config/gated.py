"""What the gated models have in common: heads, neurons, k-winner-take-all gates, number types."""

import dataclasses
from typing import Literal

from jaxablate.config.checks import LARGEST, divisors, require, require_numbers, require_positive
from jaxablate.errors import ConfigError

UnitKind = Literal["attention", "neurons"]
"""Kinds of gated units: channels of the concatenated attention heads, neurons of the MLP."""
UNIT_KINDS: tuple[UnitKind, ...] = ("attention", "neurons")
MOST_LAYERS = 1024
"""Layers of a model, at most: each is traced and compiled by itself, which takes the time of as many programs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedModelConfig:
    """Blocks of attention and MLP whose channels and neurons k-winner-take-all gates may choose from."""

    d_model: int = 128
    """Width D of the residual stream."""
    n_layers: int = 8
    """Number of blocks."""
    n_heads: int = 16
    """Attention heads N of a layer."""
    d_mlp: int | None = None
    """Neurons F of a layer; None means 4 * d_model."""
    layer_norm_eps: float = 1e-5
    """Added to the variance (of RMS norms: to the mean square) before the root is taken."""

    ablation: str = "none"
    """Each model says which kinds of scores it has."""
    k_attention: int | tuple[int, ...] = 8
    """Winners among a layer's N H attention channels for each token; one number, or one a layer."""
    k_neurons: int | tuple[int, ...] = 8
    """Winners among a layer's F neurons for each token; one number, or one a layer."""
    gate: str = "hard"
    """hard: exactly k ones forward, the soft gate's gradient backward; soft: the soft gate itself; or the name of
    another gate of `jaxablate.gating.GATES`."""
    surrogate: Literal["sigmoid", "softmax"] = "sigmoid"
    """The soft gate: sigmoid as in the released code, softmax as in the paper's text."""
    temperature_attention: float = 1.0
    """Width of the soft gate of attention channels over the gap between the k-th and the next score."""
    temperature_neurons: float = 1.0
    """The same of neurons."""
    gate_eps: float = 1e-12
    """Added to temperature * gap, the soft gate's width."""

    param_dtype: Literal["float32", "float64"] = "float32"
    """Type of the parameters and of the optimiser's state."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the matrix products' inputs; gates, softmax, norms and losses are at least float32."""

    def __post_init__(self):
        require_numbers(self)
        if self.gate not in ("hard", "soft"):  # names of other packages: only now is the registry needed, and JAX
            from jaxablate.gating import GATES

            GATES[self.gate]
        require_positive(self, "d_model", "n_layers", "n_heads", "layer_norm_eps", "temperature_attention",
                         "temperature_neurons", "gate_eps")
        require(self.d_mlp is None or self.d_mlp > 1, f"d_mlp={self.d_mlp} must be at least 2")
        require(self.n_layers <= MOST_LAYERS, f"n_layers={self.n_layers} must be at most {MOST_LAYERS}")
        require(self.mlp_width <= LARGEST, f"d_mlp={self.mlp_width}, 4 times d_model, must be at most {LARGEST:,}; "
                "choose a smaller d_model, or give d_mlp")
        self._check_heads()
        if self.gated:
            self._check_k("k_attention", self.attention_width, "attention channels")
            self._check_k("k_neurons", self.mlp_width, "neurons")

    def _check_heads(self) -> None:
        if self.d_model % self.n_heads:
            raise ConfigError(f"n_heads={self.n_heads} must divide d_model={self.d_model}; choose one of "
                              f"{', '.join(map(str, divisors(self.d_model)))}")

    def _check_k(self, name: str, units: int, noun: str) -> None:
        value = getattr(self, name)
        ks = (value,) if isinstance(value, int) else tuple(value)
        if not isinstance(value, int):
            require(
                len(ks) == self.n_layers,
                f"{name} has {len(ks)} entries for n_layers={self.n_layers}; give one number or {self.n_layers}",
            )
        for k in ks:
            below = "must be at least 1" if k < 1 else f"must be below the {units} {noun} of a layer"
            require(1 <= k < units, f"{name}={k} {below}; choose 1..{units - 1}")

    @property
    def head_width(self) -> int:
        """Width H of one attention head."""
        return self.d_model // self.n_heads

    @property
    def attention_width(self) -> int:
        """Channels of a layer's concatenated heads, N H: its gated attention units."""
        return self.n_heads * self.head_width

    @property
    def mlp_width(self) -> int:
        """Neurons F of one layer, resolved."""
        return 4 * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def gated(self) -> bool:
        """Whether the model has gates and an ablated stream."""
        return self.ablation != "none"

    def layer_k(self, kind: UnitKind, layer: int) -> int:
        """Number of winners of one kind in a layer."""
        value = self.k_attention if kind == "attention" else self.k_neurons
        return value if isinstance(value, int) else value[layer]
