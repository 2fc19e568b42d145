"""The plain way: one fact at a time through the whole untouched model, with its own hooks.

Nothing of the library is called here, so that what agrees with it agrees for a reason.
"""

import torch


def encode(tokenizer, text, subject_start, subject):
    """Ids and the index of the token that covers the subject's last character."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    if ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    last = subject_start + len(subject) - 1
    return ids, max(i for i in range(len(ids)) if offsets[i][0] <= last < offsets[i][1])


def prompt(tokenizer, fact, template="{}"):
    inner = template.index("{}") + fact.prompt.index("{}")
    text = template.replace("{}", fact.prompt.replace("{}", fact.subject))
    return encode(tokenizer, text, inner, fact.subject)


def output_of(block_result):
    return block_result[0] if isinstance(block_result, tuple) else block_result


class Plain:
    """A model with hooks that read a token's state at some layers, or add a vector to it at one."""

    def __init__(self, hf, tokenizer, blocks):
        self.hf, self.tokenizer, self.blocks = hf, tokenizer, blocks

    def states(self, ids, position, layers, layer=None, value=None, shift=None):
        """Logits ``[token, vocab]`` and the states of one token, with one state replaced or shifted."""
        seen, handles = {}, []

        def reader(index):
            def hook(_module, _inputs, result):
                seen[index] = output_of(result)[0, position]

            return hook

        def writer(_module, _inputs, result):
            hidden = output_of(result)
            row = hidden[0].clone()
            row[position] = row[position] + shift if value is None else value
            changed = row[None]
            return (changed, *result[1:]) if isinstance(result, tuple) else changed

        if layer is not None:
            handles.append(self.blocks[layer].register_forward_hook(writer))
        handles += [self.blocks[index].register_forward_hook(reader(index)) for index in layers]
        try:
            logits = self.hf(torch.tensor([ids])).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen

    def anchor(self, fact, layer, templates, lr=0.5, steps=25, decay=0.5, kl_factor=0.0625, clamp=0.75):
        """The anchor of one fact (methods.md §2)."""
        target = self.tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
        rows = []
        for template in (t for group in templates for t in group):
            ids, position = prompt(self.tokenizer, fact, template)
            rows.append((ids + target[:-1], position, len(ids) - 1))
        kl_ids, kl_position = encode(self.tokenizer, f"{fact.subject} is a", 0, fact.subject)
        ids, position = prompt(self.tokenizer, fact)
        with torch.no_grad():
            start = self.states(ids, position, [layer])[1][layer].clone()
        delta = torch.zeros_like(start, requires_grad=True)
        optimiser, reference = torch.optim.Adam([delta], lr=lr), None
        for number in range(1, steps + 1):
            nll = 0.0
            for row, place, first in rows:
                logits, _ = self.states(row, place, [], layer, shift=delta)
                log_p = logits[first:].double().log_softmax(-1)
                nll = nll - sum(log_p[j, t] for j, t in enumerate(target)) / len(target) / len(rows)
            logits, _ = self.states(kl_ids, kl_position, [], layer, shift=delta)
            log_p = logits[kl_position].double().log_softmax(-1)
            reference = log_p.detach() if reference is None else reference
            divergence = (log_p.exp() * (log_p - reference)).sum()
            loss = nll + kl_factor * divergence + decay * delta.norm() / start.norm() ** 2
            if loss < 0.05 or number == steps:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                if delta.norm() > clamp * start.norm():
                    delta.mul_(clamp * start.norm() / delta.norm())
        return (start + delta).detach(), float(loss.detach()), number
