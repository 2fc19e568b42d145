"""Where a model is: on one device, or its blocks divided over several cards, and all else at home on the first."""

import re
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.families import Family

Places = tuple[torch.device, ...]
"""Where a model is: one device, or the cards that it is divided over, home first."""

_DEVICE = re.compile(r"cpu|cuda|cuda:(\d{1,3})(?:-(\d{1,3}))?")


def places_of(device: str) -> Places:
    """What is meant by a device."""
    if device == "auto":
        return (torch.device("cuda" if torch.cuda.is_available() else "cpu"),)
    found = _DEVICE.fullmatch(device)
    first, last = (None, None) if found is None else (found[1], found[2])
    if found is None or (first and last and int(last) < int(first)):
        raise InputError(
            f"expected a device of auto, cpu, cuda, cuda:N or, for a model that is divided over several cards, "
            f"cuda:M-N, got {device!r}: choose one of them"
        )
    if first is None:
        return (torch.device(device),)
    return tuple(torch.device("cuda", index) for index in range(int(first), int(last or first) + 1))


def check_places(places: Places, device: str) -> None:
    """Refuse devices that this machine does not have."""
    if places[0].type != "cuda":
        return
    if not torch.cuda.is_available():
        raise InputError(f"expected a CUDA device for {device!r}, got none on this machine: use ⟨device⟩ cpu")
    if (places[-1].index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InputError(f"expected a CUDA device up to cuda:{last}, got {device!r}: choose one that is there")


def shares(hf: nn.Module, family: Family, places: Places) -> dict[str, torch.device]:
    """Which part of a model goes where: blocks in their order, so that every device holds about as many weights."""
    found, above, home = dict[str, torch.device](), "", places[0]
    for name in family.blocks.split("."):  # down to the blocks, and what stands beside them on the way
        parent = hf.get_submodule(above)
        prefix = f"{above}." if above else ""
        found |= {prefix + each: home for each, _ in parent.named_children() if each != name}
        above = prefix + name
    blocks = list(hf.get_submodule(family.blocks).children())
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    total, before = sum(weight.numel() for weight in hf.parameters()), 0
    room = max(0.0, total / len(places) - (total - sum(sizes)))  # for blocks at home
    each = (sum(sizes) - room) / max(1, len(places) - 1)
    for index, size in enumerate(sizes):
        beyond = before + size / 2 - room
        found[f"{family.blocks}.{index}"] = home if beyond < 0 else places[min(len(places) - 1, 1 + int(beyond / each))]
        before += size
    return found


def divide(hf: Any, family: Family, places: Places) -> None:
    """Divide a model over devices: each block takes what it is given to where it is, and hands its output home.

    Whoever runs the model, or one of its blocks, sees all at home: what differs is where the weights are, and what is
    inside of a block.
    """
    if len(places) == 1:
        hf.to(places[0])
        return
    remove_hook_from_module(hf, recurse=True)  # transformers' own, of a model that was read into its places
    for name, place in shares(hf, family, places).items():
        part = hf.get_submodule(name).to(place)
        if name.startswith(f"{family.blocks}."):
            add_hook_to_module(part, AlignDevicesHook(place, io_same_device=True))
