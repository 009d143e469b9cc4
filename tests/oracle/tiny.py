"""Tiny random models as complete Hugging Face folders, and the variants of their storage."""

import shutil
from collections import Counter

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from common import SEED, sentences, write_json

SHAPE = {"hidden": 32, "layers": 2, "heads": 4, "intermediate": 64, "positions": 64}
WORDPIECE_VOCABULARY = 200
# 256 bytes, five special tokens and a few merges.
BPE_VOCABULARY = 320


def commonest(counter, count):
    """The `count` most frequent keys, ties in alphabetical order."""
    return sorted(counter, key=lambda key: (-counter[key], key))[:count]


def wordpiece():
    """A lower-casing WordPiece tokenizer: every letter, the commonest words, the commonest endings.

    Its vocabulary is chosen here because that of `WordPieceTrainer` is another at every run.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words, endings = Counter(), Counter()
    for sentence in sentences():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence)):
            words[word] += 1
            for length in (2, 3):
                if len(word) > length:
                    endings["##" + word[-length:]] += 1
    letters = sorted({letter for word in words for letter in word})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary += ["##" + letter for letter in letters if letter.isalnum()]
    for letter in letters:
        words.pop(letter, None)
    room = WORDPIECE_VOCABULARY - len(vocabulary)
    vocabulary += commonest(words, room // 2)
    vocabulary += commonest(endings, room - room // 2)

    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(vocabulary[:5])
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_level_bpe():
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.token_to_id("</s>")),
        ("<s>", tokenizer.token_to_id("<s>")),
        trim_offsets=True,
        add_prefix_space=False,
    )
    return tokenizer


def randomise(model):
    """Gives every parameter its own noise, biases and norms too, so that none can be mistaken for another."""
    # Gemma's norms keep their scale less 1.
    usual = 0.0 if "gemma" in model.config.model_type else 1.0
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            norm_weight = ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight")
            scale = 0.1 if parameter.ndim == 1 else 0.2
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + usual if norm_weight else noise)


def write_folder(folder, model, tokenizer, tokenizer_config):
    folder.mkdir(parents=True, exist_ok=True)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def bert_tokenizer_config(name):
    specials = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return {
        "tokenizer_class": name,
        "do_lower_case": True,
        "model_max_length": SHAPE["positions"],
        **{f"{role}_token": token for role, token in specials.items()},
    }


def write_bert(folder):
    tokenizer = wordpiece()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        intermediate_size=SHAPE["intermediate"],
        max_position_embeddings=SHAPE["positions"],
    )
    model = BertModel(config)
    write_folder(folder, model, tokenizer, bert_tokenizer_config("BertTokenizer"))
    return model


def write_bert_variants(folder, model):
    """The same model in two shards, in half precision, and under the names of the first BERT release."""

    def beside(suffix):
        variant = folder.with_name(folder.name + suffix)
        variant.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, variant / name)
        return variant

    model.save_pretrained(beside("-sharded"), max_shard_size="64KB")

    legacy = beside("-pretraining")
    shutil.copy(folder / "config.json", legacy / "config.json")
    generator = torch.Generator().manual_seed(SEED)
    tensors = {"cls.predictions.bias": torch.randn(model.config.vocab_size, generator=generator)}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[f"bert.{name}"] = tensor
    save_file(tensors, legacy / "model.safetensors", metadata={"format": "pt"})

    # Last, because `to` changes the model itself.
    for suffix, dtype in (("-bf16", torch.bfloat16), ("-f16", torch.float16)):
        half = BertModel.from_pretrained(folder, dtype=torch.float32).to(dtype)
        half.save_pretrained(beside(suffix))


def write_roberta(folder):
    tokenizer = byte_level_bpe()
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        intermediate_size=SHAPE["intermediate"],
        max_position_embeddings=SHAPE["positions"],
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    specials = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    tokenizer_config = {
        "tokenizer_class": "RobertaTokenizer",
        "add_prefix_space": False,
        # Positions count from pad_token_id + 1, so the table has two rows that no token uses.
        "model_max_length": SHAPE["positions"] - 2,
        "mask_token": "<mask>",
        **{f"{role}_token": token for role, token in specials.items()},
    }
    write_folder(folder, RobertaForMaskedLM(config), tokenizer, tokenizer_config)


def write_distilbert(folder):
    tokenizer = wordpiece()
    config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=SHAPE["hidden"],
        n_layers=SHAPE["layers"],
        n_heads=SHAPE["heads"],
        hidden_dim=SHAPE["intermediate"],
        max_position_embeddings=SHAPE["positions"],
    )
    model = DistilBertForMaskedLM(config)
    write_folder(folder, model, tokenizer, bert_tokenizer_config("DistilBertTokenizer"))


def write_deberta(out):
    """As the third version is published, with distances that share rows within 64 positions."""
    tokenizer = wordpiece()
    config = DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=30,
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=SHAPE["positions"],
        type_vocab_size=0,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type="p2c|c2p",
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=8,
        max_relative_positions=-1,
        pooler_hidden_act="gelu",
    )
    write_folder(out / "tiny-deberta", DebertaV2ForMaskedLM(config), tokenizer, bert_tokenizer_config("PreTrainedTokenizerFast"))


# Windows shorter than most sentences, heads that are no power of two. As published: no biases, a head over the mean, one
# layer in three that attends to all; and the contrary: every bias, a head over the first token, whose last layer is local.
MODERNBERTS = {
    "tiny-modernbert": (
        ModernBertForMaskedLM,
        dict(num_hidden_layers=3, classifier_pooling="mean", local_attention=9, mlp_dropout=0.1, classifier_dropout=0.1),
    ),
    "tiny-modernbert-biased": (
        ModernBertModel,
    Phi3Config,
    Phi3ForCausalLM,
        dict(
            num_hidden_layers=2,
            global_attn_every_n_layers=2,
            local_attention=6,
            norm_bias=True,
            attention_bias=True,
            mlp_bias=True,
            classifier_bias=True,
            classifier_activation="relu",
            hidden_activation="silu",
            norm_eps=1e-3,
            attention_dropout=0.1,
            embedding_dropout=0.1,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
    ),
}


def write_modernbert(out, name):
    make, settings = MODERNBERTS[name]
    tokenizer = wordpiece()
    specials = {role: tokenizer.token_to_id(f"[{role.upper()}]") for role in ("pad", "cls", "sep")}
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=36,
        intermediate_size=40,
        num_attention_heads=3,
        max_position_embeddings=SHAPE["positions"],
        bos_token_id=specials["cls"],
        eos_token_id=specials["sep"],
        **{f"{role}_token_id": index for role, index in specials.items()},
        **settings,
    )
    tokenizer_config = bert_tokenizer_config("PreTrainedTokenizerFast")
    tokenizer_config["model_input_names"] = ["input_ids", "attention_mask"]
    write_folder(out / name, make(config), tokenizer, tokenizer_config)


def write_all(out):
    write_bert_variants(out / "tiny-bert", write_bert(out / "tiny-bert"))
    write_roberta(out / "tiny-roberta")
    write_distilbert(out / "tiny-distilbert")
    write_deberta(out)
    for name in MODERNBERTS:
        write_modernbert(out, name)


def small(common):
    return {**common, "hidden_size": 24, "intermediate_size": 40}


# What puts a token before a text.
STARTED = ("tiny-llama", "tiny-mistral", "tiny-gemma2")


# Grouped heads, heads wider than their share, tied and own heads, biases, norms of heads, scaled positions: each
# somewhere.
DECODERS = {
    "tiny-llama": lambda common: LlamaForCausalLM(
        LlamaConfig(
            num_attention_heads=6,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            # Within so few positions the scaling has to be felt.
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            **common,
        )
    ),
    "tiny-mistral": lambda common: MistralForCausalLM(
        MistralConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=None, rms_norm_eps=1e-5, **common
        )
    ),
    "tiny-qwen2": lambda common: Qwen2ForCausalLM(
        Qwen2Config(
            num_attention_heads=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            **common,
        )
    ),
    "tiny-qwen3": lambda common: Qwen3ForCausalLM(
        Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=8, **common)
    ),
    "tiny-mistral-sliding": lambda common: MistralForCausalLM(
        MistralConfig(num_attention_heads=3, num_key_value_heads=1, sliding_window=5, **small(common))
    ),
    "tiny-qwen2-sliding": lambda common: Qwen2ForCausalLM(
        Qwen2Config(
            num_attention_heads=2,
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            **small(common),
        )
    ),
    "tiny-gemma2": lambda common: Gemma2ForCausalLM(
        Gemma2Config(
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=12,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.5,
            sliding_window=5,
            **{**small(common), "num_hidden_layers": 3},
        )
    ),
    "tiny-gemma3": lambda common: Gemma3ForCausalLM(
        Gemma3TextConfig(
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=10,
            query_pre_attn_scalar=7,
            sliding_window=6,
            attention_bias=True,
            layer_types=["full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
            **small(common),
        )
    ),
    "tiny-phi3": lambda common: Phi3ForCausalLM(
        Phi3Config(num_attention_heads=3, num_key_value_heads=1, sliding_window=6, **small(common))
    ),
    "tiny-gpt2": lambda common: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=common["vocab_size"],
            n_embd=48,
            n_layer=SHAPE["layers"],
            n_head=4,
            n_inner=80,
            n_positions=SHAPE["positions"],
            **{key: common[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    ),
}


def write_decoders(out):
    for name in DECODERS:
        write_decoder(out, name)


def write_decoder(out, name):
    tokenizer = byte_level_bpe()
    # Of these families some put a token before a text, and some nothing.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" if name in STARTED else "$A",
        pair="<s> $A $B" if name in STARTED else "$A $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    common = dict(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=SHAPE["layers"],
        max_position_embeddings=SHAPE["positions"],
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": SHAPE["positions"],
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    write_folder(out / name, DECODERS[name](common), tokenizer, tokenizer_config)


# Image models: a square of square patches; and an oblong of oblong ones, with a second token in front of them and queries,
# keys and values without biases.
IMAGES = {
    "tiny-vit": (ViTConfig, ViTModel, {"image_size": 16, "patch_size": 4, "qkv_bias": True}),
    "tiny-deit": (DeiTConfig, DeiTModel, {"image_size": [12, 20], "patch_size": [4, 5], "qkv_bias": False}),
}


def write_clip(folder):
    """Both towers, and beside it the images' alone."""
    tower = {
        "hidden_size": 24,
        "num_hidden_layers": SHAPE["layers"],
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "projection_dim": 8,
    }
    config = CLIPConfig(
        vision_config={**tower, "image_size": 15, "patch_size": 5},
        text_config={**tower, "num_hidden_layers": 1, "vocab_size": 40, "max_position_embeddings": 8},
        projection_dim=8,
    )
    model = CLIPModel(config)
    randomise(model)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 15}, crop_size=15, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for part, to in ((model, folder), (model.vision_model, folder.with_name(folder.name + "-vision"))):
        part.save_pretrained(to)
        processor.save_pretrained(to)


def write_images(out, name):
    """A base model without a pooler."""
    if name == "tiny-clip":
        return write_clip(out / name)
    make_config, make, settings = IMAGES[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(
        num_channels=3,
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        intermediate_size=SHAPE["intermediate"],
        **settings,
    )
    model = make(config, add_pooling_layer=False)
    randomise(model)
    model.save_pretrained(folder)
    size = settings["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    ViTImageProcessorPil(size={"height": height, "width": width}).save_pretrained(folder)
