"""GGUF files of small models, and a reader of any that shares nothing with the library but the weights' names."""

import json
import math
import re
from itertools import pairwise

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

LEAVES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = {
    **LEAVES,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CLASSES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}


def leaves(kind: str) -> dict[str, str]:
    """transformers' names of a block's tensors, by the file's."""
    return GEMMA if kind == "gemma3" else LEAVES


def their_name(name: str, kind: str) -> str:
    """transformers' name of a GGUF file's tensor."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if block:
        return f"model.layers.{block[1]}.{leaves(kind)[block[2]]}.{block[3]}"
    stem, _, end = name.rpartition(".")
    return f"{OUTSIDE[stem]}.{end}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head as llama.cpp has them: pairs of a rotation side by side, not half a head apart."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """The way back."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, folder, settings=(), without=(), tensors=(), general=()):
    """Write a small model's folder as a GGUF file, with further settings and tensors, or without some tensors."""
    config = json.loads((folder / "config.json").read_text())
    kind, heads = config["model_type"].removesuffix("_text"), config["num_attention_heads"]
    groups = config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for key, value in {f"{kind}.{key}": value for key, value in dict(settings).items()}.items() | dict(general).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words["vocab"], key=words["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if kind == "gemma3":
        writer.add_unk_token_id(0)
    weights = load_file(folder / "model.safetensors")
    names = [f"blk.{layer}.{leaf}" for layer in range(config["num_hidden_layers"]) for leaf in leaves(kind)]
    for name in [f"{stem}.{end}" for stem in [*names, *OUTSIDE] for end in ("weight", "bias")]:
        if their_name(name, kind) in weights and not any(name.startswith(each) for each in without):
            weight = weights[their_name(name, kind)].numpy()
            weight = weight + 1 if kind == "gemma3" and "norm" in name else weight
            rotated = kind == "llama" and re.search(r"attn_[qk]\.", name)
            writer.add_tensor(name, interleaved(weight, heads if "_q." in name else groups) if rotated else weight)
    for name, weight in dict(tensors).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_plainly(path):
    """The plain transformers model of a GGUF file: every tensor by gguf's own dequantisation, angles by llama.cpp."""
    reader = gguf.GGUFReader(path)
    said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kind = said["general.architecture"]
    own = {key.removeprefix(f"{kind}."): value for key, value in said.items()}
    heads, groups, d_model = own["attention.head_count"], own["attention.head_count_kv"], own["embedding_length"]
    width = own.get("attention.key_length", d_model // heads)
    special = {"attention_bias": "blk.0.attn_q.bias" in tensors} if kind != "qwen2" else {}
    if kind == "gemma3":  # every sixth block attends to all; 27B alone, of 62 blocks, scales scores otherwise
        every = ["full_attention" if block % 6 == 5 else "sliding_attention" for block in range(own["block_count"])]
        special |= {"layer_types": every, "sliding_window": own["attention.sliding_window"]}
        special |= {"query_pre_attn_scalar": d_model // heads if own["block_count"] == 62 else width}
    hf = AutoModelForCausalLM.from_config(
        CLASSES[kind](
            vocab_size=int(tensors["token_embd.weight"].shape[1]),
            hidden_size=d_model,
            intermediate_size=own["feed_forward_length"],
            num_hidden_layers=own["block_count"],
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=width,
            max_position_embeddings=own["context_length"],
            rms_norm_eps=own["attention.layer_norm_rms_epsilon"],
            tie_word_embeddings="output.weight" not in tensors,
            **special,
        ),
        dtype=torch.float32,
    ).eval()
    open_weights = dict(hf.named_parameters())
    factors = tensors.pop("rope_freqs.weight", None)
    for name, tensor in tensors.items():
        if "rot_embd" in name:
            continue
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind == "llama" and re.search(r"attn_[qk]\.", name):
            weight = apart(weight, heads if "_q." in name else groups)
        if kind == "gemma3" and "norm" in name:
            weight = weight - 1
        open_weights.pop(their_name(name, kind)).data.copy_(torch.from_numpy(np.array(weight)))
    assert not open_weights, sorted(open_weights)
    if kind == "gemma3":
        local = {"rope.freq_base": own.get("rope.freq_base_swa", 10000.0)}
        _set_angles(hf.model.rotary_emb, local, width, None, "sliding_attention_")
        _set_angles(hf.model.rotary_emb, own, width, None, "full_attention_")
    else:
        _set_angles(hf.model.rotary_emb, own, width, None if factors is None else np.array(factors.data))
    return hf


def sentencepieces(path, text):
    """Ids of a text as llama.cpp has them of a vocabulary with scores.

    Words of the user's own come first; in the rest, neighbors whose word has the best score are joined.
    """
    said = {key: field for key, field in gguf.GGUFReader(path).fields.items() if key.startswith("tokenizer.ggml.")}
    words, scores, kinds = (said[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type"))
    ids = {word: i for i, word in enumerate(words)}
    own = {word for word, kind in zip(words, kinds, strict=True) if kind == gguf.TokenType.USER_DEFINED}
    at_once = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
    result = [said["tokenizer.ggml.bos_token_id"].contents()]
    for part in re.split(f"({at_once})", text):
        pieces = [part] if part in own else list(part.replace(" ", "\u2581"))
        while pairs := [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]:
            place = -max(pairs)[1]
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        for piece in pieces:
            result += [ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return result


def _set_angles(rotary, own, width, factors, prefix=""):
    """Frequencies and magnitude as ggml's rope_yarn and its callers have them."""
    base = own.get("rope.freq_base", 10000.0)
    frequencies = base ** (-np.arange(0, width, 2) / width)
    if factors is not None:
        frequencies = frequencies / factors
    stretch = own.get("rope.scaling.factor", 1.0)
    scaled = frequencies / stretch
    setattr(rotary, f"{prefix}attention_scaling", 1.0)
    if own.get("rope.scaling.type") == "yarn":
        length = own.get("rope.scaling.original_context_length", own["context_length"])

        def bound(turns):
            return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0, math.floor(bound(32))), min(width - 1, math.ceil(bound(1)))
        ramp = 1 - np.clip((np.arange(width // 2) - low) / max(0.001, high - low), 0, 1)
        scaled = scaled * (1 - ramp) + frequencies * ramp
        rotary.attention_scaling = 1.0 + 0.1 * math.log(stretch)
    setattr(rotary, f"{prefix}inv_freq", torch.tensor(scaled, dtype=torch.float32))
