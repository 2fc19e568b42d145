"""A causal language model with names for the parts that editing needs."""

import copy
import html
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jacobian_lab.facts.fact import Fact
from jacobian_lab.model import tokens
from jacobian_lab.model.chat import Chat
from jacobian_lab.model.families import KNOWN, Defaults, Family, Shape
from jacobian_lab.model.modules import block_output as block_output
from jacobian_lab.model.modules import cache_name as cache_name
from jacobian_lab.model.modules import matrix as matrix
from jacobian_lab.model.protocols import defaults_of
from jacobian_lab.model.tokens import BARE, Prompt

_CAST: WeakKeyDictionary[nn.Module, dict[torch.dtype, Any]] = WeakKeyDictionary()
"""Copies of models in other dtypes, while the models live."""


@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A causal language model with names for the parts that editing needs.

    Attributes:
        hf: The transformers model, in evaluation mode, its weights not requiring gradients.
        tokenizer: Its fast tokenizer.
        family: Where the parts are.
        name: What the user called it.
        fingerprint: SHA-256 of its configuration, its tokenizer and its weights as loaded.
        chat: The chat template that prompts are a user's turn of, if they are to be.

    Examples:
        >>> import jacobian_lab as jl
        >>> model = jl.load_model()
        >>> model.weight(4).shape, model.defaults().layers
        (torch.Size([576, 1536]), (4, 5, 6, 7, 8))
    """

    hf: Any
    tokenizer: Any
    family: Family
    name: str
    fingerprint: str
    chat: Chat | None = None

    def __repr__(self) -> str:
        dtype, entry = str(self.dtype).removeprefix("torch."), self.known_as()
        layers, others = self.defaults().layers, len(self.devices) - 1
        place = f"{self.device}" + (f" and {others} more" if others else "")
        settings = f"the literature's settings of {entry}" if entry else "educated guesses for settings"
        return (
            f"{self.name}: {self.hf.config.model_type}, {self.n_layers} blocks of width {self.d_model}, keys of "
            f"{self.d_mlp}, {dtype} on {place}; decisive layers {layers[0]} to {layers[-1]}, {settings}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return operator.attrgetter(self.family.blocks)(self.hf)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.hf.config.hidden_size)

    @property
    def d_mlp(self) -> int:
        """Width of the keys; of one expert's, where a block has several MLPs."""
        if self.family.projection:
            return int(self.weight(0).shape[1])
        config = self.hf.config
        return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have an embedding."""
        return int(self.hf.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """The primary device: of its embedding, its head, and what its blocks hand on."""
        return next(self.hf.parameters()).device

    @property
    def devices(self) -> list[torch.device]:
        """All devices that hold weights, the primary one first."""
        return list(dict.fromkeys([self.device, *(next(block.parameters()).device for block in self.blocks)]))

    @property
    def cards(self) -> int:
        """Number of cards that hold weights; 0 where none does."""
        return len(self.devices) if self.device.type == "cuda" else 0

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.hf.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> "LanguageModel":
        """The model in another dtype, as its weights are now: as if it had been loaded so, rotary angles in float32.

        Args:
            dtype: The dtype.

        Returns:
            A copy, one for each dtype, that every call brings up to date until `drop_casts`; the model itself if that
            is its dtype.
        """
        if dtype == self.dtype:
            return self
        copies = _CAST.setdefault(self.hf, {})
        if dtype not in copies:
            cast: dict[int, Any] = {id(w): nn.Parameter(w.to(dtype), requires_grad=False) for w in self.hf.parameters()}
            cast |= {id(b): b.float() for b in self.hf.buffers() if b.dtype == torch.float64}
            copies[dtype] = copy.deepcopy(self.hf, cast)
        with torch.no_grad():
            for copied, weight in zip(copies[dtype].parameters(), self.hf.parameters(), strict=True):
                copied.copy_(weight)
        return replace(self, hf=copies[dtype])

    def drop_casts(self) -> None:
        """Let go of the copies in other dtypes."""
        _CAST.pop(self.hf, None)

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        return self.hf.base_model

    def fact_prompt(self, fact: Fact, template: str = BARE, *, answer: bool = False) -> Prompt:
        """A fact's row; see `jacobian_lab.model.tokens.fact_prompt`.

        Args:
            fact: The fact.
            template: A context template, with one ``{}``.
            answer: Whether to append the answer to be learnt.

        Returns:
            The row.
        """
        return self._embedded(tokens.fact_prompt(self.tokenizer, fact, template, answer=answer, chat=self.chat))

    def fact_prompts(self, fact: Fact, template: str = BARE) -> tuple[Prompt, Prompt]:
        """A fact's row, and its row with the answer to be learnt; see `jacobian_lab.model.tokens.fact_prompts`.

        Args:
            fact: The fact.
            template: A context template, with one ``{}``.

        Returns:
            Both rows.
        """
        prompt, answered = tokens.fact_prompts(self.tokenizer, fact, template, chat=self.chat)
        return self._embedded(prompt), self._embedded(answered)

    def kl_prompt(self, fact: Fact) -> Prompt:
        """The row of the KL term; see `jacobian_lab.model.tokens.kl_prompt`.

        Args:
            fact: The fact.

        Returns:
            The row.
        """
        return self._embedded(tokens.kl_prompt(self.tokenizer, fact, self.chat))

    def text_prompt(self, text: str, answer: str = "", join: str | None = None) -> Prompt:
        """The row of a prompt as it stands; see `jacobian_lab.model.tokens.text_prompt`.

        Args:
            text: The prompt.
            answer: The answer, without the space before it.
            join: What its record says of how they are joined.

        Returns:
            The row.
        """
        return self._embedded(tokens.text_prompt(self.tokenizer, text, answer, join, chat=self.chat))

    def _embedded(self, row: Prompt) -> Prompt:
        if self.device.type != "meta":  # a sketch may have another model's tokenizer
            tokens.check_ids(self.tokenizer, row.ids + row.answer, self.vocab_size)
        return row

    def projection(self, layer: int) -> Any:
        """The MLP output projection of a block; its input is the key."""
        return operator.attrgetter(self.family.projection)(self.blocks[layer])

    def projection_name(self, layer: int) -> str:
        """Name of the same among the modules of the transformers model."""
        return f"{self.family.blocks}.{layer}.{self.family.projection}"

    def weight(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """W_l, so that the MLP's output is ``W_l k`` (and a bias).

        Args:
            layer: The block's index.

        Returns:
            A view that shares memory with the model: writing into it edits the model.
        """
        return matrix(self.projection(layer))

    def copied_weight(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """Copy W_l, as it is now, to the primary device."""
        return self.weight(layer).to(self.device, copy=True)

    def mlp(self, layer: int) -> nn.Module:
        """The MLP of a block, or the part of it that gives its output."""
        path = self.family.mlp or self.family.projection.rpartition(".")[0]
        return operator.attrgetter(path)(self.blocks[layer])

    def attention(self, layer: int) -> nn.Module:
        """The attention of a block, whose output joins the residual stream."""
        return operator.attrgetter(self.family.attention)(self.blocks[layer])

    def output_norm(self, layer: int) -> nn.Module | None:
        """The norm that a block's MLP output passes before it joins the stream."""
        path = self.family.output_norm
        return operator.attrgetter(path)(self.blocks[layer]) if path else None

    def joining(self, layer: int) -> nn.Module:
        """The module whose output, times `mlp_factor`, a block adds to the stream: the MLP, or the norm behind it."""
        return self.output_norm(layer) or self.mlp(layer)

    @property
    def mlp_factor(self) -> float:
        """Factor of an MLP's output before it joins the stream."""
        return self._entry(self.family.mlp_factor) or 1.0

    def inner(self, layer: int) -> list[nn.Module]:
        """The linear maps at the MLP's entrance; from them to the key all is elementwise."""
        return [operator.attrgetter(path)(self.blocks[layer]) for path in self.family.inner]

    @property
    def max_tokens(self) -> int:
        """Tokens that a row may have; where frequencies follow the longest row of a batch, as long as they rest."""
        config = self.hf.config
        rotary = getattr(config, "rope_parameters", None) or {}
        by_kind = [part for part in rotary.values() if isinstance(part, dict)]  # of each type of layers, or of all
        resting = [part for part in by_kind or [rotary] if part.get("rope_type") in {"dynamic", "longrope"}]
        originals = [part.get("original_max_position_embeddings") for part in resting]
        return int(min(config.max_position_embeddings, *filter(None, originals), config.max_position_embeddings))

    def kind(self, layer: int) -> str:
        """Type of a block's attention, as the configuration calls it."""
        kinds = getattr(self.hf.config, "layer_types", None)
        return kinds[layer] if kinds else ""

    def window(self, layer: int) -> int | None:
        """Number of tokens, itself counted, that a token of this block attends to."""
        kind = self.kind(layer)
        sliding = kind == "sliding_attention" if kind else self.family.windowed
        return self.hf.config.sliding_window if sliding else None

    def positional(
        self, hidden: Float[Tensor, "row token d_model"], positions: Int[Tensor, "row token"], kind: str = ""
    ) -> dict[str, Any]:
        """Arguments of the blocks that depend on positions; the same for all blocks of a kind.

        Args:
            hidden: Any hidden states; only their dtype matters.
            positions: Position of each token in its row.
            kind: What `kind` says of the blocks.

        Returns:
            Keyword arguments for `call_block`.
        """
        if not self.family.rotary:
            return {}
        if "position_embeddings" not in inspect.signature(self.blocks[0].forward).parameters:
            return {"position_ids": positions}  # as GPT-J's blocks before transformers 5.24
        rotary = operator.attrgetter(self.family.rotary)(self.hf)
        by_kind = (kind,) if "layer_type" in inspect.signature(rotary.forward).parameters else ()
        return {"position_embeddings": rotary(hidden, positions, *by_kind)}

    def call_block(
        self,
        layer: int,
        hidden: Float[Tensor, "row token d_model"],
        mask: Float[Tensor, "row 1 token key"],
        cache: Any,
        positional: Mapping[str, Any],
    ) -> Float[Tensor, "row token d_model"]:
        """Run one block by itself.

        Args:
            layer: The block's index.
            hidden: Output of the block before.
            mask: What is added to the attention scores.
            cache: An object whose ``update(keys, values, layer)`` returns the keys and values to attend to.
            positional: What `positional` returned.

        Returns:
            The block's output.
        """
        block = self.blocks[layer]
        keywords = {cache_name(block): cache, "attention_mask": mask, **positional, **self.family.constants}
        return block_output(block(hidden, use_cache=True, **keywords))

    def norm(self, hidden: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The norm between the last block and the head.

        Args:
            hidden: Output of the last block.

        Returns:
            Input of the head.
        """
        return operator.attrgetter(self.family.norm)(self.hf)(hidden)

    def head(self, hidden: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row vocab"]:
        """The head, in float32 or better whatever the weights are: a loss of rounded logits keeps three digits.

        Args:
            hidden: Output of the norm.

        Returns:
            Logits, in float32 or better.
        """
        head, dtype = self.hf.get_output_embeddings(), torch.promote_types(self.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(dtype)
        logits = nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias)
        if factor := self._entry(self.family.logit_factor):
            logits = logits * factor
        if divisor := self._entry(self.family.logit_divisor):
            logits = logits / divisor
        if cap := self._entry(self.family.logit_cap):
            logits = (logits / cap).tanh() * cap
        return logits

    def _entry(self, name: str) -> float | None:
        """A number in the configuration, if the family has a name for it."""
        return getattr(self.hf.config, name) if name else None

    def known_as(self) -> str:
        """The model's name in `KNOWN`, by its shape.

        Returns:
            The name; empty for another model.
        """
        config = self.hf.config
        shape = Shape(
            config.model_type,
            self.n_layers,
            self.d_model,
            self.d_mlp,
            self.vocab_size,
            config.max_position_embeddings,
        )
        return next((name for name, entry in KNOWN.items() if entry.shape == shape), "")

    def defaults(self, protocol: str | None = None) -> Defaults:
        """Settings for this model: the literature's where it is known, else an educated guess.

        Args:
            protocol: What is to be used instead: a name in `KNOWN`, one of the shelf, or a file.

        Returns:
            For an unknown model five layers from an eighth of its depth on, as the paper has them
            in Llama-3-8B.
        """
        if name := protocol or self.known_as():
            return defaults_of(name)
        first = min(self.n_layers // 8, max(self.n_layers - 5, 0))
        rate = 0.2 if self.family.output_norm else 0.5  # there in units of rms(u)
        return Defaults(tuple(range(first, min(first + 5, self.n_layers))), None, rate, 25)


Layers = tuple[int, ...]
