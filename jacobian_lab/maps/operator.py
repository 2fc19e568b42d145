"""J_{l→L} of one fact as one object: products, matrix, spectra and the verdict of theorem 2."""

from collections.abc import Callable, Iterable
from html import escape

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.conditions import (
    Eigenspaces,
    Vectors,
    cosine,
    eigen_residual,
    eigenspaces,
    eigenvector_angle,
    gain,
    rayleigh_quotient,
)
from jacobian_lab.maps.definiteness import (
    WIDEST_DENSE,
    Definiteness,
    definiteness,
    definiteness_matrix_free,
    positive_share,
)
from jacobian_lab.maps.jacobians import (
    by_columns,
    dense_jacobians,
    jvp,
    layer_factors,
    linear_operator,
    precision,
    to_numpy,
    to_torch,
    vjp,
)
from jacobian_lab.maps.replay import MLP, RESIDUAL, Frozen, Site, freeze
from jacobian_lab.maps.spectra import henrici_departure, numerical_range, rotation
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import check_tokens, fact_rows


class Jacobian:
    """J_{l→L} = ∂h_L/∂h_l at the decisive token of one fact's prompt (paper §3), as an operator.

    Products and the matrix are computed when asked for, in the model's dtype. The tokens before the decisive one are
    frozen when the object is made: after an edit of the model, make another. They are frozen twice, and a model whose
    states differ by more than the rounding that a verdict allows (dropout in training, noise in a hook) is refused.

    Args:
        model: The model.
        fact: The fact; its row is the bare prompt up to the decisive token.
        layer: The layer l, behind whose block the hidden state is changed.
        last: The layer L above it, behind whose block the change is read.
        site: ``"residual"``, the stream behind a block, or ``"mlp"``: then J maps a change of what the MLP of l adds
            to the change of what the MLP of L adds.
        state: The decisive state h_l to linearise at, ``[d_model]``; the unmodified one by default.

    Attributes:
        model: As given.
        fact: As given.
        layer: As given.
        last: As given.
        site: As given.
        state: The decisive state that J is taken at, ``[d_model]``, in the model's dtype.

    Raises:
        InputError: If the layers are not two of the model in ascending order, the site is none, the state is not of
            the model's width, the model does not take the fact's prompt, or answers differently when asked again.

    Examples:
        >>> import numpy as np, jacobian_lab as jl
        >>> model, (fact,) = jl.load_model(device="cpu"), jl.load_facts("builtin", "3:4")
        >>> J = jl.Jacobian(model, fact, 4, 5)
        >>> J
        Jacobian(fact continent/Germany, layers 4 → 5, residual, 576 × 576, float32)
        >>> v = np.ones(576)
        >>> np.allclose(J @ v, J.dense() @ v, atol=1e-3), np.allclose(J.T @ v, J.dense().T @ v, atol=1e-3)
        (True, True)
        >>> J.definiteness().decision
        'indefinite'
        >>> 0 < J.positive_share() < 1, 0 < J.henrici() < 1, J.rotation() > 0
        (True, True, True)
    """

    def __init__(
        self,
        model: LanguageModel,
        fact: Fact,
        layer: int,
        last: int,
        *,
        site: str = RESIDUAL,
        state: np.ndarray | Tensor | None = None,
    ) -> None:
        if not 0 <= layer < last < model.n_layers:
            raise InputError(
                f"expected layer < last, both from 0 to {model.n_layers - 1}, got layer={layer} and last={last}: "
                f"choose two of the {model.n_layers} layers of {model.name}, the lower first"
            )
        if site not in {RESIDUAL, MLP}:
            raise InputError(f"expected a site of {RESIDUAL} or {MLP}, got {site!r}: choose one of them")
        if state is not None and state.shape != (model.d_model,):
            raise InputError(f"expected a state [{model.d_model}], got the shape {tuple(state.shape)}: give one vector")
        rows = fact_rows(model, [fact])
        check_tokens(model, fact, rows.answered[0])
        self.model, self.fact, self.layer, self.last = model, fact, layer, last
        self.site: Site = MLP if site == MLP else RESIDUAL
        self._frozen = _repeatable(freeze(model, rows.bare, [layer, last], last) for _ in range(2))
        unmodified = self._frozen.states(layer)[0]
        self.state = unmodified if state is None else to_torch(state, unmodified)
        self._dense: Float[np.ndarray, "d_model d_model"] | None = None
        self._verdict: Definiteness | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_model, d_model)``."""
        return self.model.d_model, self.model.d_model

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the arrays that it gives: float64 if the model is, else float32."""
        return to_numpy(self.state[:0]).dtype

    @property
    def T(self) -> "Transposed":  # noqa: N802 - as arrays have it
        """Jᵀ."""
        return Transposed(self)

    def __matmul__(self, v: Vectors) -> Vectors:
        """J·v by forward mode.

        Args:
            v: One vector ``[d_model]`` or some as columns, ``[d_model, k]``.

        Returns:
            Of the same shape and kind: an array of `dtype`, or a tensor in the model's dtype and on its device.

        Raises:
            InputError: If `v` has another shape, or not real numbers.
        """
        return self._product(jvp, v)

    def dense(self) -> Float[np.ndarray, "d_model d_model"]:
        """The matrix, ``J[i, j] = ∂h_L[i] / ∂h_l[j]``.

        Returns:
            An array of `dtype`, computed once and kept; it cannot be written to.
        """
        if self._dense is None:
            sweep = dense_jacobians(self._frozen, [self.layer], self.last, self.state[None], site=self.site)
            self._dense = to_numpy(sweep[0, 0])
            self._dense.flags.writeable = False
        return self._dense

    def to_scipy(self) -> LinearOperator:
        """J as SciPy sees it, for its matrix-free solvers.

        Returns:
            A square operator with ``matvec`` (J·v) and ``rmatvec`` (Jᵀ·u), of `dtype`.
        """
        return linear_operator(self._frozen, 0, self.layer, self.last, self.state, site=self.site)

    def factors(self) -> list[Float[np.ndarray, "d_model d_model"]]:
        """The factors J_{i→i+1} of the blocks between, whose product J_{L-1→L} ⋯ J_{l→l+1} is J.

        Returns:
            One matrix a block, in ascending order.

        Raises:
            InputError: At the MLPs' outputs, which alone do not determine what follows.
        """
        if self.site != RESIDUAL:
            raise InputError(f"expected the site {RESIDUAL} for factors, got {self.site}: what an MLP adds has none")
        layers = range(self.layer, self.last + 1)
        return [to_numpy(factor[0]) for factor in layer_factors(self._frozen, layers, self.state[None])]

    def definiteness(self) -> Definiteness:
        """Theorem 2: is S = (J + Jᵀ)/2 positive definite?

        Returns:
            The verdict with its certificate, computed once and kept: from the matrix up to a width of `WIDEST_DENSE`,
            above it by Lanczos, and by a Cholesky factor where that finds no counterexample (see `definiteness`).
        """
        if self._verdict is None:
            eps, narrow = precision(self.model.dtype), self.model.d_model <= WIDEST_DENSE
            dense, matrix_free = definiteness, definiteness_matrix_free
            self._verdict = dense(self.dense(), eps) if narrow else matrix_free(self.to_scipy(), eps=eps)
        return self._verdict

    def eigenspaces(self) -> Eigenspaces:
        """Theorem 1: the real lines and planes that J maps into themselves, from the matrix.

        Returns:
            As `jacobian_lab.maps.conditions.eigenspaces` has them.
        """
        return eigenspaces(self.dense())

    def positive_share(self) -> float:
        """Share of the eigenvalues of S = (J + Jᵀ)/2 that are positive, from the matrix: 1 iff theorem 2 holds.

        Returns:
            Between 0 and 1.
        """
        J = self.dense().astype(np.float64)
        return positive_share(np.linalg.eigvalsh((J + J.T) / 2))

    def henrici(self) -> float:
        """Henrici's departure from normality, (‖J‖_F² − Σ|λ|²)^½ / ‖J‖_F, from the matrix: 0 iff J is normal.

        Returns:
            Between 0 and 1.
        """
        J = self.dense().astype(np.float64)
        return henrici_departure(J, np.linalg.eigvals(J))

    def rotation(self) -> float:
        """‖A‖_F / ‖S‖_F with A = (J − Jᵀ)/2, from the matrix: how much J turns, against how much it stretches.

        Returns:
            0 for a symmetric J; infinity for an antisymmetric one.
        """
        return rotation(self.dense())

    def conditions(self, directions: Float[np.ndarray, "n d_model"]) -> dict[str, Float[np.ndarray, " n"]]:
        """Quantities that theorems 1 and 2 speak of, along some directions.

        Args:
            directions: The directions δ, not zero.

        Returns:
            ``rayleigh`` ⟨δ, Jδ⟩/‖δ‖², ``eigen_residual`` sin∠(Jδ, δ), ``cosine`` cos(Jδ, δ), ``gain`` ‖Jδ‖/‖δ‖, and
            ``eigenvector_angle`` to J's nearest real eigenvector, in radians.
        """
        images = directions @ self.dense().T
        return {
            "rayleigh": rayleigh_quotient(directions, images),
            "eigen_residual": eigen_residual(directions, images),
            "cosine": cosine(directions, images),
            "gain": gain(directions, images),
            "eigenvector_angle": eigenvector_angle(self.eigenspaces(), directions),
        }

    def numerical_range(self, points: int = 64) -> np.ndarray:
        """Boundary of the numerical range W(J), from the matrix.

        Args:
            points: How many, an even number.

        Returns:
            Complex points, as `jacobian_lab.maps.spectra.numerical_range` has them.
        """
        return numerical_range(self.dense(), points)

    def __repr__(self) -> str:
        verdict = "" if self._verdict is None else f", {self._verdict.decision}"
        return (
            f"Jacobian(fact {self.fact.id}, layers {self.layer} → {self.last}, {self.site}, "
            f"{self.shape[0]} × {self.shape[1]}, {self._model_dtype}{verdict})"
        )

    def _repr_html_(self) -> str:
        extremes = "not computed yet: <code>definiteness()</code>"
        if (verdict := self._verdict) is not None:
            extremes = f"{verdict.decision}: λ ∈ [{verdict.smallest:.3g}, {verdict.largest:.3g}] ± {verdict.error:.1g}"
        lines = {
            "fact": escape(f"{self.fact.id}: {self.fact.text}"),
            "layers": f"{self.layer} → {self.last} of {escape(self.model.name)}, {self.site}",
            "matrix": f"{self.shape[0]} × {self.shape[1]}, {self._model_dtype}",
            "symmetric part": extremes,
        }
        rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in lines.items())
        return f"<table><caption>J<sub>{self.layer}→{self.last}</sub></caption>{rows}</table>"

    @property
    def _model_dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def _product(self, form: Callable[..., Tensor], vectors: Vectors) -> Vectors:
        """J·v or Jᵀ·u, by the form of one row's product."""
        width = self.shape[0]
        if vectors.ndim not in {1, 2} or vectors.shape[0] != width:
            got = tuple(vectors.shape)
            raise InputError(f"expected a vector [{width}] or columns [{width}, k], got the shape {got}: transpose it")

        def one(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
            return form(self._frozen, self.layer, self.last, vector[None], self.state[None], site=self.site)[0]

        products = by_columns(one, to_torch(vectors, self.state)).detach()
        return products if isinstance(vectors, Tensor) else to_numpy(products)


class Transposed:
    """Jᵀ of a `Jacobian`, as ``J.T`` gives it.

    Args:
        J: The Jacobian.

    Attributes:
        T: The Jacobian again.
        shape: ``(d_model, d_model)``.
    """

    def __init__(self, J: Jacobian) -> None:
        self.T, self.shape = J, J.shape

    def __matmul__(self, u: Vectors) -> Vectors:
        """Jᵀ·u by reverse mode.

        Args:
            u: One vector ``[d_model]`` or some as columns, ``[d_model, k]``.

        Returns:
            Of the same shape and kind, as ``J @ v`` gives it.

        Raises:
            InputError: If `u` has another shape, or not real numbers.
        """
        return self.T._product(vjp, u)

    def dense(self) -> Float[np.ndarray, "d_model d_model"]:
        """The matrix.

        Returns:
            A view of the Jacobian's own.
        """
        return self.T.dense().T

    def to_scipy(self) -> LinearOperator:
        """Jᵀ as SciPy sees it.

        Returns:
            The adjoint of the Jacobian's own.
        """
        return self.T.to_scipy().H

    def __repr__(self) -> str:
        return f"{self.T!r}.T"


def _repeatable(attempts: Iterable[Frozen]) -> Frozen:
    """The first of two attempts at the same rows, refused where the states of the second differ beyond rounding."""
    once, again = attempts
    model = once.model
    for layer, states in once.tails.items():
        difference = float((again.tails[layer] - states).norm() / states.norm())
        if difference > model.d_model * precision(model.dtype):
            hint = "call model.hf.eval()" if model.hf.training else "take away what is random in it, such as a hook"
            raise InputError(
                f"expected the same states of {model.name!r} when it is asked twice, got a relative difference of "
                f"{difference:.1e} behind layer {layer}: {hint}"
            )
    return once
