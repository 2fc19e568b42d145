"""Devices of a model: one, or several cards that its blocks are divided over, with all else on the first."""

import re
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.families import Family

Places = tuple[torch.device, ...]
"""Devices of a model: one, or the cards that it is divided over, the primary one first."""

_DEVICE = re.compile(r"cpu|cuda|cuda:(\d{1,3})(?:-(\d{1,3}))?")


def parse_device(device: str) -> Places:
    """Read the name of a device, or of several cards."""
    if device == "auto":
        return (torch.device("cuda" if torch.cuda.is_available() else "cpu"),)
    match = _DEVICE.fullmatch(device)
    first, last = (None, None) if match is None else (match[1], match[2])
    if match is None or (first and last and int(last) < int(first)):
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
    """Map a model's parts to devices: blocks in their order, so that every device holds about as many weights."""
    device_map, above, primary = dict[str, torch.device](), "", places[0]
    for name in family.blocks.split("."):  # down to the blocks, and what stands beside them on the way
        parent = hf.get_submodule(above)
        prefix = f"{above}." if above else ""
        device_map |= {prefix + child: primary for child, _ in parent.named_children() if child != name}
        above = prefix + name
    blocks = list(hf.get_submodule(family.blocks).children())
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    total, before = sum(weight.numel() for weight in hf.parameters()), 0
    room = max(0.0, total / len(places) - (total - sum(sizes)))  # for blocks on the primary device
    share = (sum(sizes) - room) / max(1, len(places) - 1)
    for index, size in enumerate(sizes):
        beyond = before + size / 2 - room
        place = primary if beyond < 0 else places[min(len(places) - 1, 1 + int(beyond / share))]
        device_map[f"{family.blocks}.{index}"] = place
        before += size
    return device_map


def divide(hf: Any, family: Family, places: Places) -> None:
    """Divide a model over devices: each block moves its inputs to its own, and its output to the primary one.

    Whoever runs the model, or one of its blocks, sees all on the primary device. Weights, and what is inside of a
    block, are elsewhere.
    """
    if len(places) == 1:
        hf.to(places[0])
        return
    remove_hook_from_module(hf, recurse=True)  # transformers' own, of a model that was read into its places
    for name, place in shares(hf, family, places).items():
        part = hf.get_submodule(name).to(place)
        if name.startswith(f"{family.blocks}."):
            add_hook_to_module(part, AlignDevicesHook(place, io_same_device=True))
