"""Causal tracing the plain way: every cell and draw a whole pass of the untouched model, with hooks of its own."""

from operator import attrgetter

import torch

from helpers.reference import output_of

ATTENTION = {"gpt2": "attn", "gptj": "attn", "gpt_neox": "attention", "falcon": "self_attention"}
BLOCKS = {
    **dict.fromkeys(("gpt2", "gptj", "falcon"), "transformer.h"),
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


class PlainTrace:
    """One prompt; `joining` names the modules whose outputs join the stream, by part."""

    def __init__(self, hf, ids, subject, answer, noise, joining=None):
        kind = hf.config.model_type
        self.hf, self.subject, self.answer, self.noise = hf, subject, answer, noise
        self.blocks = attrgetter(BLOCKS.get(kind, "model.layers"))(hf)
        paths = {"mlp": "fc2" if kind == "opt" else "mlp", "attention": ATTENTION.get(kind, "self_attn")}
        paths |= joining or {}
        self.parts = {name: [attrgetter(path)(block) for block in self.blocks] for name, path in paths.items()}
        self.parts["residual"] = list(self.blocks)
        self.embeds = hf.get_input_embeddings()(torch.tensor([ids]))
        self.clean, self.clean_states = self.run(self.embeds)
        self.noisy = [self._with(draw) for draw in noise]
        self.corrupted, self.corrupted_states = zip(*(self.run(embeds) for embeds in self.noisy), strict=True)

    def _with(self, draw):
        embeds = self.embeds.clone()
        embeds[0, self.subject.start : self.subject.stop] += draw
        return embeds

    def run(self, embeds, writes=()):
        """Probability of the answer, and every part's output; `writes` are (part, block, token, value)."""
        outputs, handles = {}, []

        def reader(part, block):
            def hook(_module, _inputs, result):
                outputs[part, block] = output_of(result).reshape(len(embeds[0]), -1).clone()

            return hook

        def writer(token, value):
            def hook(_module, _inputs, result):
                states = output_of(result).clone(memory_format=torch.contiguous_format)
                states.view(len(embeds[0]), -1)[token] = value
                return (states, *result[1:]) if isinstance(result, tuple) else states

            return hook

        for part, block, token, value in writes:
            handles.append(self.parts[part][block].register_forward_hook(writer(token, value)))
        for part, modules in self.parts.items():
            handles += [module.register_forward_hook(reader(part, block)) for block, module in enumerate(modules)]
        try:
            logits = self.hf(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits.double().softmax(-1)[self.answer]), outputs

    def effect(self, site, layer, token, window):
        """Restored less corrupted probability, mean over draws."""
        total, blocks = 0.0, range(len(self.blocks))
        for embeds, before, states in zip(self.noisy, self.corrupted, self.corrupted_states, strict=True):
            if site in {"mlp", "attention"}:  # ROME's window: layer - window // 2 up to layer - (-window // 2)
                inside = [b for b in blocks if layer - window // 2 <= b < layer - (-window // 2)]
                writes = [(site, block, token, self.clean_states[site, block][token]) for block in inside]
            else:
                writes = [("residual", layer, token, self.clean_states["residual", layer][token])]
                part = site.removesuffix("-severed")
                if part != site:
                    writes += [(part, block, token, states[part, block][token]) for block in blocks if block > layer]
            total += self.run(embeds, writes)[0] - before
        return total / len(self.noisy)
