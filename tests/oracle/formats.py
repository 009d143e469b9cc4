"""Checkpoints in other files than safetensors: those of `torch.save`, and GGUF. Run by itself:

    python tests/oracle/formats.py

Needs `gguf` beside what the others need. Writes `tests/fixtures/formats`, and the manifest anew.
"""

import hashlib
import os
import shutil
import warnings

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import quants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM

import golden
import tiny
from common import FIXTURES, SEED, be_deterministic, write_json

OUT = FIXTURES / "formats"
# Ids of a text, of which the logits of what follows are written down.
IDS = [5, 70, 300, 12, 261, 9, 33, 150, 42]


def beside(name, source):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / source / file, folder / file)
    return folder


def write_bin():
    """The tiny BERT with tensors that lie in their storages in every way there is."""
    tensors = load_file(FIXTURES / "tiny-bert" / "model.safetensors")
    state, layer = {}, "encoder.layer.0.attention.self."
    for nth, (name, tensor) in enumerate(sorted(tensors.items())):
        if tensor.ndim == 2 and nth % 3 == 0:
            # Columns lie one behind the other.
            tensor = tensor.t().contiguous().t()
        elif tensor.ndim == 2 and nth % 3 == 1:
            # Part of something larger, with a gap behind each row, in the middle of a storage.
            larger = torch.full((tensor.shape[0] + 3, tensor.shape[1] + 5), float("nan"))
            larger[2:-1, 3:-2] = tensor
            tensor = larger[2:-1, 3:-2]
        state[name] = tensor
    # Two tensors of one storage, a parameter, and what is no weight: a view that repeats a number.
    both = torch.cat([tensors[layer + "query.bias"], tensors[layer + "key.bias"]])
    state[layer + "query.bias"], state[layer + "key.bias"] = both[:32], both[32:]
    state[layer + "value.weight"] = torch.nn.Parameter(tensors[layer + "value.weight"])
    state["embeddings.position_ids"] = torch.arange(64).expand((1, -1))
    torch.save(state, beside("bin", "tiny-bert") / "pytorch_model.bin")


def write_bin_shards():
    """The tiny BERT in half precision, in two files and an index."""
    folder = beside("bin-sharded", "tiny-bert-f16")
    tensors = sorted(load_file(FIXTURES / "tiny-bert-f16" / "model.safetensors").items())
    parts = [dict(tensors[: len(tensors) // 2]), dict(tensors[len(tensors) // 2 :])]
    where = {}
    for nth, part in enumerate(parts, 1):
        file = f"pytorch_model-{nth:05}-of-00002.bin"
        torch.save(part, folder / file)
        where.update(dict.fromkeys(part, file))
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})


def write_bin_tied():
    """The tiny GPT-2 as `state_dict` has it: its head is its table, in one storage, in bfloat16."""
    folder = beside("bin-tied", "tiny-gpt2")
    model = GPT2LMHeadModel.from_pretrained(FIXTURES / "tiny-gpt2").to(torch.bfloat16)
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    torch.save(state, folder / "pytorch_model.bin")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/dynalora-was-here",)


def write_refused():
    """What is no state dict of tensors."""
    folder = OUT / "refused"
    folder.mkdir(parents=True, exist_ok=True)
    tensor = torch.arange(4, dtype=torch.float32)
    torch.save({"a": tensor, "b": Evil()}, folder / "evil.bin")
    torch.save({"a": tensor}, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {"a": tensor}, "epoch": 3}, folder / "nested.bin")
    torch.save(torch.nn.Linear(2, 2), folder / "module.bin")
    torch.save({"a": torch.ones(1).expand(1000)}, folder / "expanded.bin")


def permuted(weight, heads):
    """As `convert_hf_to_gguf.py` of llama.cpp orders the rows of Llama's queries and keys."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def random_blocks(rows, columns, kind, generator):
    """Blocks of a kind that `gguf` does not write, their halves small numbers."""
    size, length = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (rows * columns // size, length), dtype=np.uint8)
    scales = {Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}[kind]
    for at in scales:
        small = generator.uniform(-2e-3, 2e-3, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = small.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


# Each kind somewhere; of rows of 256 the K kinds.
KINDS = {
    "token_embd": (Q.Q8_0,),
    "attn_q": (Q.Q4_0, Q.F16, Q.Q8_0),
    "attn_k": (Q.Q5_0, Q.Q4_1, Q.F32),
    "attn_v": (Q.Q5_1, Q.BF16, Q.Q4_0),
    "attn_output": (Q.Q4_1, Q.Q5_0, Q.Q5_1),
    "ffn_gate": (Q.BF16, Q.Q8_0, Q.F16),
    "ffn_up": (Q.F16, Q.Q4_0, Q.Q5_0),
    "ffn_down": (Q.Q4_K, Q.Q5_K, Q.Q6_K),
}


def add(writer, name, weight, mixed, generator):
    part = name.split(".")[-2]
    kinds = KINDS.get(part, (Q.F32,)) if mixed and weight.ndim == 2 else (Q.F16 if weight.ndim == 2 else Q.F32,)
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    kind = kinds[layer % len(kinds)]
    if kind == Q.F32:
        return writer.add_tensor(name, weight)
    if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
        return writer.add_tensor(name, random_blocks(*weight.shape, kind, generator), raw_dtype=kind)
    if kind == Q.F16:
        return writer.add_tensor(name, weight.astype(np.float16))
    writer.add_tensor(name, quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)


DECODER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def translated(name, names):
    path, part = name.rsplit(".", 1)
    for layers in ("model.layers.", "transformer.h."):
        if path.startswith(layers):
            layer, path = path[len(layers) :].split(".", 1)
            return f"blk.{layer}.{names[path]}.{part}"
    return f"{names[path]}.{part}"


def write_gguf(name, model, mixed=False):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tiny.randomise(model)
    config, path = model.config, folder / f"{name}.gguf"
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokenizer = tiny.byte_level_bpe()
    tokenizer.save(str(folder / "tokenizer.json"))
    # No more of it is read than its end.
    words = [tokenizer.id_to_token(id) for id in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    generator = np.random.default_rng(SEED)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.numpy()
        if family == "llama" and "q_proj" in key:
            weight = permuted(weight, config.num_attention_heads)
        if family == "llama" and "k_proj" in key:
            weight = permuted(weight, config.num_key_value_heads)
        if family == "gpt2" and weight.ndim == 2 and ".h." in key:
            weight = weight.T
        add(writer, translated(key, GPT2 if family == "gpt2" else DECODER), np.ascontiguousarray(weight), mixed, generator)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    # Of GPT-2's sizes Transformers does not take all from the file.
    known = {"config": config} if family == "gpt2" else {}
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager", **known
    ).eval()
    state = {key: value for key, value in read.state_dict().items() if key != "lm_head.weight" or not read.config.tie_word_embeddings}
    with torch.no_grad():
        logits = read(torch.tensor([IDS])).logits[0, -1]
    write_json(
        folder / "golden.json",
        {
            "ids": IDS,
            "logits": logits.tolist(),
            "tensors": {
                key: {"shape": list(value.shape), "sha256": hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
                for key, value in sorted(state.items())
            },
        },
    )


def write_ggufs():
    common = dict(vocab_size=tiny.BPE_VOCABULARY, max_position_embeddings=64)
    parts = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5)
    llama = LlamaConfig(
        intermediate_size=256, num_hidden_layers=3, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        **parts, **common,
    )
    write_gguf("llama", LlamaForCausalLM(llama), mixed=True)
    qwen2 = Qwen2Config(intermediate_size=96, num_hidden_layers=1, tie_word_embeddings=False, **parts, **common)
    write_gguf("qwen2", Qwen2ForCausalLM(qwen2))
    gpt2 = GPT2Config(
        vocab_size=common["vocab_size"], n_positions=64, n_embd=64, n_inner=96, n_layer=1, n_head=4, tie_word_embeddings=True
    )
    write_gguf("gpt2", GPT2LMHeadModel(gpt2))


def write_adapter():
    """PEFT's adapter of the tiny BERT, as `save_pretrained(…, safe_serialization=False)` writes it."""
    trained = FIXTURES / "tiny-bert" / "golden" / "query-value" / "trained"
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(load_file(trained / "adapter_model.safetensors"), OUT / "adapter_model.bin")


def main():
    be_deterministic()
    warnings.simplefilter("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    write_bin()
    write_bin_shards()
    write_bin_tied()
    write_refused()
    write_ggufs()
    write_adapter()
    golden.write_manifest(FIXTURES, None, {})


if __name__ == "__main__":
    main()
