"""The plain way: one fact at a time through the whole untouched model, with its own hooks.

Nothing of the library is called here, so that what agrees with it agrees for a reason.
"""

import contextlib

import torch
from scipy.optimize import brentq


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


def hooks(model):
    """Hooks of every module; where somebody has asked for hidden states, transformers has left its own."""
    return [[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in model.hf.modules()]


class Enough(Exception):  # noqa: N818
    """Raised by a hook when all that is asked for has been seen: the blocks above need not run."""


class Plain:
    """A model with hooks that read a token's state at some layers, replace it at one, or add vectors to it at some.

    Given norms behind the MLPs, by layer, vectors are added to what the norms are given.
    """

    def __init__(self, hf, tokenizer, blocks, norms=None):
        self.hf, self.tokenizer, self.blocks, self.norms = hf, tokenizer, blocks, norms

    @classmethod
    def of(cls, model):
        norms = [model.output_norm(layer) for layer in range(model.n_layers)]
        return cls(model.hf, model.tokenizer, model.blocks, norms if norms[0] else None)

    def seen(self, ids, position, layers, layer=None, value=None):
        """The states of one token, with one state replaced; the blocks above are not run."""
        try:
            return self.states(ids, position, layers, layer, value, stop=max(layers))[1]
        except Enough as enough:
            return enough.args[0]

    def states(self, ids, position, layers, layer=None, value=None, shifts=None, stop=None):
        """Logits ``[token, vocab]`` and the states of one token, with one state replaced and others shifted."""
        seen, handles = {}, []

        def reader(index):
            def hook(_module, _inputs, result):
                seen[index] = output_of(result)[0, position]
                if index == stop:
                    raise Enough(seen)

            return hook

        def writer(change):
            def hook(_module, _inputs, result):
                hidden = output_of(result)
                row = hidden[0].clone()
                row[position] = change(row[position])
                changed = row[None]
                return (changed, *result[1:]) if isinstance(result, tuple) else changed

            return hook

        def adder(shift):
            def hook(_module, inputs):
                row = inputs[0][0].clone()
                row[position] = row[position] + shift
                return (row[None],)

            return hook

        if value is not None:
            handles.append(self.blocks[layer].register_forward_hook(writer(lambda _: value)))
        for index, shift in (shifts or {}).items():
            if self.norms:
                handles.append(self.norms[index].register_forward_pre_hook(adder(shift)))
                continue
            handles.append(self.blocks[index].register_forward_hook(writer(lambda row, shift=shift: row + shift)))
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
            state = self.seen(ids, position, [layer])[layer].clone()
        return torch.func.jacrev(lambda value: self.seen(ids, position, [last], layer, value)[last])(state)

    @torch.no_grad()
    def write(self, ids, position, layer):
        """What the norm behind a layer's MLP is given at one token."""
        seen = []
        handle = self.norms[layer].register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0][0, position])
        )
        self.hf(torch.tensor([ids]))
        handle.remove()
        return seen[0]

    def moving(self, ids, position, layers):
        """What the norms are given, and what the stream moves by when a vector is added to it; none without norms."""
        writes = {layer: self.write(ids, position, layer) for layer in layers} if self.norms else None

        def moved(layer, delta):
            if writes is None:
                return delta
            return self.norms[layer](writes[layer] + delta) - self.norms[layer](writes[layer])

        return writes, moved

    def anchor(self, fact, layer, templates, lr=0.5, steps=25, clamp=0.75):
        """The anchor of one fact (methods.md §2)."""
        ids, position = prompt(self.tokenizer, fact)
        shifts, loss, passes = self.shifts(fact, [layer], templates, lr, steps, clamp)
        with torch.no_grad():
            if not self.norms:
                return self.seen(ids, position, [layer])[layer] + shifts[0], loss, passes
            _, states = self.states(ids, position, [layer], shifts={layer: shifts[0]})
            return states[layer], loss, passes

    def loss(self, fact, templates, decay, kl_factor=0.0625):
        """The loss of one fact as a function of shifts by layer; at its first call they have to be zero."""
        target = self.tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
        rows, reference = [], []
        for template in (t for group in templates for t in group):
            ids, position = prompt(self.tokenizer, fact, template)
            rows.append((ids + target[:-1], position, len(ids) - 1))
        kl_ids, kl_position = encode(self.tokenizer, f"{fact.subject} is a", 0, fact.subject)

        def at(shifts):
            nll = 0.0
            for row, place, first in rows:
                logits, _ = self.states(row, place, [], shifts=shifts)
                log_p = logits[first:].double().log_softmax(-1)
                nll = nll - sum(log_p[j, t] for j, t in enumerate(target)) / len(target) / len(rows)
            logits, _ = self.states(kl_ids, kl_position, [], shifts=shifts)
            log_p = logits[kl_position].double().log_softmax(-1)
            if not reference:
                reference.append(log_p.detach())
            divergence = (log_p.exp() * (log_p - reference[0])).sum()
            return nll + kl_factor * divergence + decay(shifts)

        return at

    def shifts(self, fact, layers, templates, lr=0.5, steps=25, clamp=0.75, decay=None):
        """Shifts at some layers that together give the new answer (methods.md §4), of one fact."""
        ids, position = prompt(self.tokenizer, fact)
        with torch.no_grad():
            states = self.seen(ids, position, layers)
        sizes = {layer: state.norm() for layer, state in states.items()}
        deltas = {layer: torch.zeros_like(states[layer], requires_grad=True) for layer in layers}
        writes, moved = self.moving(ids, position, layers)

        def usual(shifts):
            return 0.5 * sum(moved(layer, delta).norm() / sizes[layer] ** 2 for layer, delta in shifts.items())

        if writes is not None:  # a learning rate for each, in units of rms(u)
            return self._normed_shifts(fact, templates, deltas, writes, moved, sizes, decay or usual, lr, steps, clamp)
        count = len(layers) ** 0.5
        optimiser = torch.optim.Adam(deltas.values(), lr=lr / count, eps=1e-8 * count)
        loss_at = self.loss(fact, templates, decay or usual)
        for number in range(1, steps + 1):
            loss = loss_at(deltas)
            if loss < 0.05 or number == steps:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                spent = sum(delta.norm() / sizes[layer] for layer, delta in deltas.items())
                if spent > clamp:
                    for delta in deltas.values():
                        delta.mul_(clamp / spent)
        return torch.stack([delta.detach() for delta in deltas.values()]), float(loss.detach()), number

    def _normed_shifts(self, fact, templates, deltas, writes, moved, sizes, decay, lr, steps, clamp):
        """The same behind norms: Adam written out, in units of rms(u), and the clamp by a root of what is spent."""
        rates = {
            layer: lr * float(write.square().mean().sqrt()) / len(deltas) ** 0.5 for layer, write in writes.items()
        }
        loss_at, moments = self.loss(fact, templates, decay), dict.fromkeys(deltas, (0.0, 0.0))
        for number in range(1, steps + 1):
            loss = loss_at(deltas)
            if loss < 0.05 or number == steps:
                break
            slopes = torch.autograd.grad(loss, list(deltas.values()))
            with torch.no_grad():
                for (layer, delta), slope in zip(deltas.items(), slopes, strict=True):
                    first, second = moments[layer]
                    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
                    moments[layer] = first, second
                    sizes_of_slopes = (second / (1 - 0.999**number)).sqrt()
                    scaled = first / (1 - 0.9**number) / (sizes_of_slopes + 1e-8 * lr / rates[layer])
                    delta.sub_(rates[layer] * scaled)

                def excess(scale):
                    return float(sum(moved(n, scale * d).norm() / sizes[n] for n, d in deltas.items())) - clamp

                if excess(1.0) > 0:
                    scale = brentq(excess, 0.0, 1.0, xtol=1e-14)
                    for delta in deltas.values():
                        delta.mul_(scale)
        return torch.stack([delta.detach() for delta in deltas.values()]), float(loss.detach()), number

    @torch.no_grad()
    def key(self, fact, projection, templates):
        """Half the bare key, half the mean over the other templates (methods.md §3)."""
        keys, seen = [], []

        def hook(_module, inputs):
            seen.append(inputs[0][0])
            raise Enough

        handle = projection.register_forward_pre_hook(hook)
        for template in (t for group in templates for t in group):
            ids, position = prompt(self.tokenizer, fact, template)
            with contextlib.suppress(Enough):
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
            rows = [self.seen(*prompt(self.tokenizer, fact), sorted({*layers, last})) for fact in facts]
            return {layer: torch.stack([row[layer] for row in rows]).double() for layer in rows[0]}

        initial, jumps = states()[last], []
        for i, layer in enumerate(layers):
            own = {"independent", "forward-replay", "forward-replay-divided", "coordinated-replay"}
            site = layer if name in own else last
            before = states()
            wanted = target_at(site).double() - before[site]
            divides = name in {"backward-dividing", "jacobian-pullback", "forward-replay-divided"}
            share = wanted / (len(layers) - i) if divides else wanted
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
                "price": shift.norm(dim=1) ** 2 / (K * torch.linalg.solve(moments[layer], K)).sum(0),
            })
            if not split:
                continue
            edited = model.weight(layer).clone()
            model.weight(layer).copy_(old)
            alone = torch.stack([  # F(h + δ): the state replaced, the weights as before
                self.seen(*prompt(self.tokenizer, fact), [last], layer, value.to(old.dtype))[last].double()
                for fact, value in zip(facts, after[layer], strict=True)
            ])
            model.weight(layer).copy_(edited)
            linear = (J @ shift[..., None])[..., 0]
            jumps.append((linear, passive))
            so_far = sum(each for each, _ in jumps)
            columns[-1]["summed_ratio"] = so_far.norm(dim=1) / (after[last] - initial).norm(dim=1)
            columns[-1]["summed_cosine"] = torch.cosine_similarity(so_far, after[last] - initial)
            terms = {"linear": linear, "curvature": alone - before[last] - linear, "leakage": after[last] - alone}
            columns[-1]["linear_cosine"] = (shift * linear).sum(1) / shift.norm(dim=1) / linear.norm(dim=1)
            columns[-1]["share_initial"] = (found * left).sum(1) / left.norm(dim=1) ** 2
            for term, value in terms.items():
                columns[-1][f"{term}_norm"] = value.norm(dim=1)
                columns[-1][f"share_{term}"] = -(value * left).sum(1) / left.norm(dim=1) ** 2
        whole = states()[last] - initial
        for column, (linear, passive) in zip(columns, jumps, strict=False):
            column["effort"] = column["shift_norm"] / sum(each["shift_norm"] for each in columns)
            column["carried"] = (passive * whole).sum(1) / whole.norm(dim=1) ** 2
            column["carried_linear"] = (linear * whole).sum(1) / whole.norm(dim=1) ** 2
        return {quantity: torch.stack([column[quantity] for column in columns], dim=-1) for quantity in columns[0]}
