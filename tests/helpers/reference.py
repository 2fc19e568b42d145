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

    def jacobian(self, fact, layer, last):
        """J_{layer→last} at the fact's own state, by reverse mode through the whole model."""
        ids, position = prompt(self.tokenizer, fact)
        with torch.no_grad():
            state = self.states(ids, position, [layer])[1][layer].clone()
        return torch.func.jacrev(lambda value: self.states(ids, position, [last], layer, value)[1][last])(state)

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

    @torch.no_grad()
    def key(self, fact, projection, templates):
        """Half the bare key, half the mean over the other templates (methods.md §3)."""
        keys, seen = [], []
        handle = projection.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
        for template in (t for group in templates for t in group):
            ids, position = prompt(self.tokenizer, fact, template)
            self.hf(torch.tensor([ids]))
            keys.append(seen.pop()[position].double())
        handle.remove()
        return 0.5 * keys[0] + 0.5 * torch.stack(keys[1:]).mean(0)

    @torch.no_grad()
    def edit(self, facts, name, layers, model, target_at, moments, ridge, templates, damping=1.0, split=False):
        """Edit layer after layer and measure (methods.md §3, §4, §7); the model is left edited.

        With ``split`` also what the linear map, the curvature and the other tokens contribute.
        """
        last, columns = layers[-1], []

        def states():
            rows = [self.states(*prompt(self.tokenizer, fact), sorted({*layers, last}))[1] for fact in facts]
            return {layer: torch.stack([row[layer] for row in rows]).double() for layer in rows[0]}

        initial = states()[last]
        for i, layer in enumerate(layers):
            site = layer if name in {"independent", "forward-replay"} else last
            before = states()
            wanted = target_at(site).double() - before[site]
            share = wanted / (len(layers) - i) if name in {"backward-dividing", "jacobian-pullback"} else wanted
            if split or name == "jacobian-pullback":
                J = torch.stack([self.jacobian(fact, layer, last).double() for fact in facts])
            if name == "jacobian-pullback":  # least squares with √μ·I below J
                ridges = torch.eye(J.shape[1], dtype=J.dtype).expand_as(J) * damping**0.5
                right = torch.cat([share, torch.zeros_like(share)], dim=1)[..., None]
                share = torch.linalg.lstsq(torch.cat([J, ridges], dim=1), right).solution[..., 0]
            K = torch.stack([self.key(fact, model.projection(layer), templates) for fact in facts]).T
            delta = torch.linalg.solve(ridge * moments[layer] + K @ K.T, K @ share).T
            size = delta.norm() / model.weight(layer).double().norm()
            old = model.weight(layer).clone()
            model.weight(layer).add_(delta.to(old.dtype))
            after = states()
            shift, passive = after[layer] - before[layer], after[last] - before[last]
            m = target_at(last).double()
            found, left = m - before[last], m - after[last]
            columns.append({
                "residual_ratio": left.norm(dim=1) / (m - initial).norm(dim=1),
                "residual_norm": left.norm(dim=1),
                "cosine": (shift * passive).sum(1) / shift.norm(dim=1) / passive.norm(dim=1),
                "unrealised": (wanted - shift).norm(dim=1) / wanted.norm(dim=1),
                "realised": (shift * share).sum(1) / share.norm(dim=1) ** 2,
                "shift_norm": shift.norm(dim=1),
                "passive_shift_norm": passive.norm(dim=1),
                "update_norm": size,
            })
            if not split:
                continue
            edited = model.weight(layer).clone()
            model.weight(layer).copy_(old)
            alone = torch.stack([  # F(h + δ): the state replaced, the weights as before
                self.states(*prompt(self.tokenizer, fact), [last], layer, value.to(old.dtype))[1][last].double()
                for fact, value in zip(facts, after[layer], strict=True)
            ])
            model.weight(layer).copy_(edited)
            linear = (J @ shift[..., None])[..., 0]
            terms = {"linear": linear, "curvature": alone - before[last] - linear, "leakage": after[last] - alone}
            columns[-1]["linear_cosine"] = (shift * linear).sum(1) / shift.norm(dim=1) / linear.norm(dim=1)
            columns[-1]["share_initial"] = (found * left).sum(1) / left.norm(dim=1) ** 2
            for term, value in terms.items():
                columns[-1][f"{term}_norm"] = value.norm(dim=1)
                columns[-1][f"share_{term}"] = -(value * left).sum(1) / left.norm(dim=1) ** 2
        return {quantity: torch.stack([column[quantity] for column in columns], dim=-1) for quantity in columns[0]}
