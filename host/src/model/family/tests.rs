//! What is read of a `config.json`, family by family, against Transformers' configuration classes (5.23).

use super::*;
use crate::kernel::Activation;
use crate::model::architecture::Rotary;

fn architecture(json: &str) -> Result<Architecture> {
    parse(json, Path::new("config.json"))
}

/// What the files of encoders decide.
#[derive(Clone, Debug, PartialEq)]
struct Sizes {
    family: &'static str,
    vocabulary: usize,
    positions: usize,
    token_types: usize,
    first_position: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    activation: Activation,
    epsilon: f32,
    hidden_dropout: f32,
    attention_dropout: f32,
    classifier_dropout: f32,
}

fn read(json: &str) -> Result<Sizes> {
    let of = architecture(json)?;
    let (tables, block) = (of.words().expect("a model of texts"), &of.block);
    let positions = tables.positions.map_or(0, |table| table.entries);
    assert_eq!(of.max_length, positions - tables.first_position);
    assert_eq!(of.dropout.embeddings, of.dropout.hidden);
    assert_eq!(block.attention.shape.query_width(), of.hidden);
    Ok(Sizes {
        family: of.family,
        vocabulary: tables.words.entries,
        positions,
        token_types: tables.types.map_or(0, |table| table.entries),
        first_position: tables.first_position,
        hidden: of.hidden,
        intermediate: block.intermediate(),
        layers: of.layers,
        heads: block.attention.shape.heads,
        activation: block.feed_forward.activation,
        epsilon: block.norms[0].epsilon,
        hidden_dropout: of.dropout.hidden,
        attention_dropout: of.dropout.attention,
        classifier_dropout: of.dropout.classifier,
    })
}

fn refused(json: &str) -> String {
    let error = architecture(json).expect_err(json);
    let help = miette::Diagnostic::help(&error).map(|help| help.to_string());
    format!("{error}\n{}", help.unwrap_or_default())
}

/// What `BertConfig()` and its siblings say.
fn default_of(family: &'static str) -> Sizes {
    Sizes {
        family,
        vocabulary: 30_522,
        positions: 512,
        token_types: 2,
        first_position: 0,
        hidden: 768,
        intermediate: 3072,
        layers: 12,
        heads: 12,
        activation: Activation::Gelu,
        epsilon: 1e-12,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        classifier_dropout: 0.1,
    }
}

#[test]
fn every_absent_key_has_the_default_of_transformers() {
    let bert = default_of("bert");
    assert_eq!(read(r#"{"model_type": "bert"}"#).unwrap(), bert);
    let of = |family| Sizes {
        first_position: 2,
        ..default_of(family)
    };
    let roberta = Sizes {
        vocabulary: 50_265,
        ..of("roberta")
    };
    assert_eq!(read(r#"{"model_type": "roberta"}"#).unwrap(), roberta);
    assert_eq!(
        read(r#"{"model_type": "xlm-roberta"}"#).unwrap(),
        of("xlm-roberta")
    );
    assert_eq!(
        read(r#"{"model_type": "camembert"}"#).unwrap(),
        of("camembert")
    );
    let distilbert = Sizes {
        token_types: 0,
        layers: 6,
        classifier_dropout: 0.2,
        ..default_of("distilbert")
    };
    assert_eq!(read(r#"{"model_type": "distilbert"}"#).unwrap(), distilbert);
}

type Change = fn(&mut Sizes);

#[test]
fn every_key_is_read_under_the_names_of_its_family() {
    let of_bert: &[(&str, Change)] = &[
        (r#""vocab_size": 9"#, |c| c.vocabulary = 9),
        (r#""hidden_size": 24"#, |c| c.hidden = 24),
        (r#""num_hidden_layers": 3"#, |c| c.layers = 3),
        (r#""num_attention_heads": 4"#, |c| c.heads = 4),
        (r#""intermediate_size": 5"#, |c| c.intermediate = 5),
        (r#""hidden_act": "gelu_new""#, |c| {
            c.activation = Activation::GeluNew
        }),
        (r#""hidden_act": "gelu_fast""#, |c| {
            c.activation = Activation::GeluNew
        }),
        (r#""hidden_act": "relu""#, |c| {
            c.activation = Activation::Relu
        }),
        (r#""hidden_act": "swish""#, |c| {
            c.activation = Activation::Silu
        }),
        (r#""hidden_dropout_prob": 0.3"#, |c| {
            (c.hidden_dropout, c.classifier_dropout) = (0.3, 0.3);
        }),
        (r#""attention_probs_dropout_prob": 0"#, |c| {
            c.attention_dropout = 0.0
        }),
        (r#""classifier_dropout": 0.4"#, |c| {
            c.classifier_dropout = 0.4
        }),
        (r#""classifier_dropout": null"#, |_| {}),
        (r#""max_position_embeddings": 7"#, |c| c.positions = 7),
        (r#""type_vocab_size": 1"#, |c| c.token_types = 1),
        (r#""layer_norm_eps": 1e-5"#, |c| c.epsilon = 1e-5),
        // DistilBERT's names are nobody else's.
        (
            r#""dropout": 0.3, "attention_dropout": 0.3, "dim": 24, "n_layers": 3, "hidden_dim": 5"#,
            |_| {},
        ),
        (
            r#""activation": "relu", "seq_classif_dropout": 0.5, "n_heads": 4"#,
            |_| {},
        ),
        // What changes nothing here.
        (
            r#""is_decoder": false, "pruned_heads": {}, "tie_word_embeddings": false, "use_cache": true"#,
            |_| {},
        ),
        (
            r#""chunk_size_feed_forward": 8, "gradient_checkpointing": true, "problem_type": null"#,
            |_| {},
        ),
        (
            r#""position_embedding_type": "absolute", "initializer_range": 0.5"#,
            |_| {},
        ),
    ];
    for (model_type, padding, first) in [("bert", 3, 0), ("roberta", 0, 1), ("roberta", 3, 4)] {
        let base = read(&format!(r#"{{"model_type": "{model_type}"}}"#)).unwrap();
        for (key, change) in of_bert {
            let mut wanted = base.clone();
            wanted.first_position = first;
            change(&mut wanted);
            let json =
                format!(r#"{{"model_type": "{model_type}", "pad_token_id": {padding}, {key}}}"#);
            assert_eq!(read(&json).unwrap(), wanted, "{json}");
        }
    }
    let of_distilbert: &[(&str, Change)] = &[
        (r#""vocab_size": 9"#, |c| c.vocabulary = 9),
        (r#""dim": 24"#, |c| c.hidden = 24),
        (r#""hidden_size": 24"#, |c| c.hidden = 24),
        (r#""dim": 24, "hidden_size": 24"#, |c| c.hidden = 24),
        (r#""n_layers": 3"#, |c| c.layers = 3),
        (r#""num_hidden_layers": 3"#, |c| c.layers = 3),
        (r#""n_heads": 4"#, |c| c.heads = 4),
        (r#""num_attention_heads": 4"#, |c| c.heads = 4),
        (r#""hidden_dim": 5"#, |c| c.intermediate = 5),
        (r#""activation": "relu""#, |c| {
            c.activation = Activation::Relu
        }),
        (r#""dropout": 0.3"#, |c| c.hidden_dropout = 0.3),
        (r#""attention_dropout": 0.3"#, |c| c.attention_dropout = 0.3),
        (r#""seq_classif_dropout": 0.3"#, |c| {
            c.classifier_dropout = 0.3
        }),
        (r#""max_position_embeddings": 7"#, |c| c.positions = 7),
        // BERT's names are not its own; its ε is fixed.
        (
            r#""hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "hidden_act": "relu""#,
            |_| {},
        ),
        (
            r#""classifier_dropout": 0.3, "layer_norm_eps": 1e-3, "type_vocab_size": 2"#,
            |_| {},
        ),
        (
            r#""intermediate_size": 5, "pad_token_id": 3, "sinusoidal_pos_embds": true"#,
            |_| {},
        ),
    ];
    let base = read(r#"{"model_type": "distilbert"}"#).unwrap();
    for (key, change) in of_distilbert {
        let mut wanted = base.clone();
        change(&mut wanted);
        let json = format!(r#"{{"model_type": "distilbert", {key}}}"#);
        assert_eq!(read(&json).unwrap(), wanted, "{json}");
    }
}

#[test]
fn what_is_not_followed_is_refused_by_name() {
    for (model_type, key, words) in [
        (
            "bert",
            r#""position_embedding_type": "relative_key""#,
            "position_embedding_type",
        ),
        ("bert", r#""is_decoder": true"#, "is_decoder"),
        (
            "roberta",
            r#""add_cross_attention": true"#,
            "add_cross_attention",
        ),
        (
            "roberta",
            r#""is_encoder_decoder": true"#,
            "is_encoder_decoder",
        ),
        ("bert", r#""pruned_heads": {"0": [1]}"#, "pruned_heads"),
        (
            "bert",
            r#""quantization_config": {"bits": 4}"#,
            "quantization_config",
        ),
        ("bert", r#""hidden_act": "mish""#, "hidden_act"),
        ("bert", r#""hidden_act": 3"#, "hidden_act"),
        ("distilbert", r#""activation": "tanh""#, "activation"),
        ("distilbert", r#""dim": 24, "hidden_size": 36"#, "dim"),
        ("bert", r#""hidden_size": 0"#, "hidden_size"),
        ("bert", r#""hidden_size": null"#, "hidden_size"),
        ("bert", r#""hidden_size": 770"#, "num_attention_heads"),
        ("bert", r#""num_hidden_layers": -1"#, "num_hidden_layers"),
        ("bert", r#""num_hidden_layers": 1e3"#, "num_hidden_layers"),
        ("bert", r#""vocab_size": 99999999999"#, "vocab_size"),
        ("bert", r#""hidden_dropout_prob": 1"#, "hidden_dropout_prob"),
        (
            "bert",
            r#""classifier_dropout": -0.1"#,
            "classifier_dropout",
        ),
        (
            "distilbert",
            r#""seq_classif_dropout": 2"#,
            "seq_classif_dropout",
        ),
        ("bert", r#""layer_norm_eps": 0"#, "layer_norm_eps"),
        ("bert", r#""type_vocab_size": 0"#, "type_vocab_size"),
        ("roberta", r#""pad_token_id": null"#, "pad_token_id"),
        (
            "roberta",
            r#""pad_token_id": 18446744073709551615"#,
            "max_position_embeddings",
        ),
        (
            "roberta",
            r#""pad_token_id": 511"#,
            "max_position_embeddings",
        ),
        ("t5", r#""d_model": 8"#, "model_type"),
    ] {
        let error = refused(&format!(r#"{{"model_type": "{model_type}", {key}}}"#));
        assert!(error.contains(words), "{key}: {error}");
    }
}

#[test]
fn a_missing_model_type_is_the_architectures() {
    for (class, family) in [
        ("BertModel", "bert"),
        ("BertForMaskedLM", "bert"),
        ("RobertaForSequenceClassification", "roberta"),
        ("XLMRobertaForMaskedLM", "xlm-roberta"),
        ("CamembertModel", "camembert"),
        ("DistilBertForMaskedLM", "distilbert"),
        ("LlamaForCausalLM", "llama"),
        ("Qwen3ForSequenceClassification", "qwen3"),
        ("GPT2LMHeadModel", "gpt2"),
    ] {
        let config = architecture(&format!(r#"{{"architectures": ["{class}"]}}"#)).unwrap();
        assert_eq!(config.family, family, "{class}");
    }
    for json in [
        "{}",
        r#"{"architectures": null}"#,
        r#"{"architectures": []}"#,
        r#"{"architectures": ["BertGenerationEncoder"]}"#,
        r#"{"architectures": ["DebertaModel"]}"#,
    ] {
        let error = refused(json);
        assert!(
            error.contains(r#"`"model_type": "bert"`"#) || error.contains("architectures"),
            "{error}"
        );
    }
    for json in ["[]", "3", "", "{\"model_type\": \"bert\""] {
        assert!(refused(json).contains("config.json"), "{json}");
    }
}

#[test]
fn decoders_have_the_defaults_of_transformers() {
    let read = |model_type: &str, rest: &str| {
        architecture(&format!(r#"{{"model_type": "{model_type}"{rest}}}"#)).unwrap()
    };
    // Vocabulary, hidden, intermediate, heads, heads of keys, size of a head, positions.
    let sizes = |of: &Architecture| {
        let shape = of.block.attention.shape;
        [
            of.vocabulary(),
            of.hidden,
            of.block.intermediate(),
            shape.heads,
            shape.pair_heads,
            shape.head_size,
            of.max_length,
        ]
    };
    for (model_type, expected) in [
        ("llama", [32_000, 4096, 11_008, 32, 32, 128, 2048]),
        ("mistral", [32_000, 4096, 14_336, 32, 8, 128, 131_072]),
        ("qwen2", [151_936, 4096, 22_016, 32, 32, 128, 32_768]),
        ("qwen3", [151_936, 4096, 22_016, 32, 32, 128, 32_768]),
        ("gpt2", [50_257, 768, 3072, 12, 12, 64, 1024]),
    ] {
        let found = read(model_type, "");
        assert_eq!(sizes(&found), expected, "{model_type}");
        let tied = found.language_head.map(|head| head.tied);
        assert_eq!(tied, Some(model_type == "gpt2"), "{model_type}");
        assert!(found.block.attention.shape.causal, "{model_type}");
        let biases: Vec<bool> = found.block.linears().map(|linear| linear.bias).collect();
        let expected: &[bool] = match model_type {
            "gpt2" => &[true; 4],
            "qwen2" => &[true, true, true, false, false, false, false],
            _ => &[false; 7],
        };
        assert_eq!(biases, expected, "{model_type}");
        let normed = found.block.attention.head_norms.is_some();
        assert_eq!(normed, model_type == "qwen3", "{model_type}");
    }
    let heads = r#", "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16"#;
    assert_eq!(sizes(&read("llama", heads))[3..6], [6, 2, 16]);
}

#[test]
fn heads_over_tokens_are_those_of_transformers() {
    let head = |json: &str| {
        let found = architecture(json).unwrap().labelling_tokens();
        found.map(|it| (it.head.last, it.head.bias, it.dropout.classifier))
    };
    for (json, expected) in [
        (
            r#""model_type": "bert", "hidden_dropout_prob": 0.3"#,
            ("classifier", true, 0.3),
        ),
        (
            r#""model_type": "bert", "classifier_dropout": 0.2"#,
            ("classifier", true, 0.2),
        ),
        (r#""model_type": "xlm-roberta""#, ("classifier", true, 0.1)),
        (
            r#""model_type": "distilbert", "dropout": 0.3, "seq_classif_dropout": 0.2"#,
            ("classifier", true, 0.3),
        ),
        (
            r#""model_type": "gpt2", "resid_pdrop": 0.0"#,
            ("classifier", true, 0.1),
        ),
        (r#""model_type": "llama""#, ("score", true, 0.1)),
        (
            r#""model_type": "qwen3", "hidden_dropout": 0.4, "token_classification_bias": false"#,
            ("score", false, 0.4),
        ),
        (
            r#""model_type": "mistral", "classifier_dropout": 0.0"#,
            ("score", true, 0.0),
        ),
    ] {
        assert_eq!(head(&format!("{{{json}}}")), Some(expected), "{json}");
    }
    let bert = architecture(r#"{"model_type": "bert"}"#).unwrap();
    assert!(bert.pooler().is_some());
    assert_eq!(bert.labelling_tokens().unwrap().pooler(), None);
    assert_eq!(head(r#"{"model_type": "vit"}"#), None);
}

#[test]
fn rotary_positions_are_scaled_as_the_file_says() {
    let of = |rest: &str| {
        let json = format!(
            r#"{{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 1, {rest}}}"#
        );
        let Rotary { frequencies } = architecture(&json).unwrap().block.attention.rotary.unwrap();
        frequencies
    };
    let close = |found: Vec<f64>, expected: [f64; 4]| {
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-9 * expected,
                "{found}, not {expected}"
            );
        }
    };
    close(of(r#""rope_theta": 10000"#), [1.0, 0.1, 0.01, 0.001]);
    // The table that Transformers 5 writes, and the two keys of those before it.
    close(
        of(r#""rope_parameters": {"rope_type": "default", "rope_theta": 16.0}"#),
        [1.0, 0.5, 0.25, 0.125],
    );
    let linear = r#""rope_theta": 16, "rope_scaling": {"type": "linear", "factor": 4.0}"#;
    close(of(linear), [0.25, 0.125, 0.0625, 0.03125]);
    // 100 positions: 15.9, 1.59, 0.159 and 0.0159 turns. The first is kept, the last two are slowed by 8, the second
    // is 0.197 of the way between.
    let llama3 = r#""rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 100}"#;
    let turns = 100.0 * 0.1 / (2.0 * std::f64::consts::PI);
    let kept = (turns - 1.0) / 3.0;
    close(
        of(llama3),
        [
            1.0,
            0.1 * (kept + (1.0 - kept) / 8.0),
            0.01 / 8.0,
            0.001 / 8.0,
        ],
    );
}

#[test]
fn decoders_that_are_computed_otherwise_are_refused_by_name() {
    for (model_type, key, words) in [
        (
            "llama",
            r#""rope_scaling": {"rope_type": "yarn", "factor": 2.0}"#,
            "rope_scaling.rope_type",
        ),
        (
            "llama",
            r#""rope_scaling": {"rope_type": "linear"}"#,
            "rope_scaling.factor",
        ),
        (
            "llama",
            r#""rope_parameters": {"partial_rotary_factor": 0.5}"#,
            "partial_rotary_factor",
        ),
        ("llama", r#""rope_parameters": 3"#, "rope_parameters"),
        ("llama", r#""head_dim": 5"#, "head_dim"),
        ("llama", r#""head_dim": 2000000000"#, "no head has more"),
        ("qwen2", r#""hidden_size": 1342177344"#, "no head has more"),
        (
            "llama",
            r#""num_key_value_heads": 5"#,
            "num_attention_heads",
        ),
        ("llama", r#""hidden_act": "mish""#, "hidden_act"),
        (
            "qwen2",
            r#""sliding_window": 0, "use_sliding_window": true"#,
            "sliding_window",
        ),
        (
            "gpt2",
            r#""scale_attn_by_inverse_layer_idx": true"#,
            "scale_attn_by_inverse_layer_idx",
        ),
        ("gpt2", r#""n_embd": 770"#, "n_embd"),
        (
            "gpt2",
            r#""add_cross_attention": true"#,
            "add_cross_attention",
        ),
    ] {
        let error = refused(&format!(r#"{{"model_type": "{model_type}", {key}}}"#));
        assert!(error.contains(words), "{key}: {error}");
    }
}

#[test]
fn image_models_have_the_defaults_of_transformers_and_follow_every_key() {
    let read = |rest: &str| architecture(&format!(r#"{{"model_type": {rest}}}"#)).unwrap();
    let sizes = |of: &Architecture| {
        let patches = of.patches().expect("a model of images");
        (
            (of.hidden, of.block.intermediate(), of.layers),
            (patches.image, patches.patch, patches.tokens()),
            of.max_length,
        )
    };
    let (vit, deit) = (read(r#""vit""#), read(r#""deit""#));
    let base = (768, 3072, 12);
    assert_eq!(sizes(&vit), (base, ([224; 2], [16; 2], 197), 197));
    assert_eq!(sizes(&deit), (base, ([224; 2], [16; 2], 198), 198));
    assert_eq!((vit.prefix, deit.prefix), ("vit", "deit"));
    assert_eq!((vit.class, deit.class), ("ViT", "DeiT"));
    assert_eq!(vit.block.norms[0].epsilon, 1e-12);
    assert_eq!(vit.dropout, Default::default());
    assert!(vit.block.linears().all(|linear| linear.bias));
    assert!(vit.words().is_none() && vit.vocabulary() == 0);

    let other = read(
        r#""vit", "image_size": [32, 48], "patch_size": [8, 16], "qkv_bias": false, "hidden_size": 24,
            "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2, "hidden_act": "relu",
            "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "layer_norm_eps": 1e-6"#,
    );
    assert_eq!(sizes(&other), ((24, 40, 2), ([32, 48], [8, 16], 13), 13));
    let biases: Vec<bool> = other.block.linears().map(|linear| linear.bias).collect();
    assert_eq!(biases, [false, false, false, true, true, true]);
    assert_eq!(other.block.feed_forward.activation, Activation::Relu);
    assert_eq!((other.dropout.embeddings, other.dropout.hidden), (0.2, 0.2));
    assert_eq!(
        (other.dropout.attention, other.block.norms[1].epsilon),
        (0.3, 1e-6)
    );
    for (key, value) in [
        ("num_channels", "1"),
        ("image_size", "225"),
        ("image_size", "[224, 100000]"),
        ("image_size", "[224]"),
        ("patch_size", "0"),
        ("patch_size", "[16, 0]"),
        ("head_dim", "32"),
        ("qkv_bias", "3"),
        ("hidden_act", "\"mish\""),
    ] {
        let error = refused(&format!(r#"{{"model_type": "vit", "{key}": {value}}}"#));
        let named = if value == "225" || value == "[224, 100000]" {
            "image_size"
        } else {
            key
        };
        assert!(error.contains(named), "{key}: {error}");
    }
}

#[test]
fn the_images_part_of_clip_is_read_alone_or_from_the_file_of_both() {
    let alone = architecture(r#"{"model_type": "clip_vision_model"}"#).unwrap();
    let patches = alone.patches().expect("a model of images");
    assert_eq!(
        (patches.image, patches.patch, patches.tokens()),
        ([224; 2], [32; 2], 50)
    );
    assert_eq!(
        (alone.hidden, alone.block.intermediate(), alone.layers),
        (768, 3072, 12)
    );
    assert_eq!(alone.block.feed_forward.activation, Activation::QuickGelu);
    assert_eq!(alone.block.norms[0].epsilon, 1e-5);
    assert_eq!(
        alone.head.reads,
        crate::model::architecture::Reads::Mean { after: 1 }
    );
    assert_eq!(alone.nested, Some("vision_config"));
    let both = architecture(r#"{"model_type": "clip", "text_config": {"hidden_size": 3}}"#);
    let mut both = both.unwrap();
    both.nested = alone.nested;
    assert_eq!(both, alone);

    let keys = r#""hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2,
        "image_size": 28, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-3, "attention_dropout": 0.1"#;
    for json in [
        format!(r#"{{"model_type": "clip_vision_model", {keys}}}"#),
        format!(r#"{{"model_type": "clip", "vision_config": {{{keys}}}}}"#),
        format!(
            r#"{{"model_type": "clip", "vision_config": {{"hidden_size": 24}}, "vision_config_dict": {{{keys}}}}}"#
        ),
    ] {
        let of = architecture(&json).unwrap();
        let patches = of.patches().expect("a model of images");
        assert_eq!(
            (
                of.hidden,
                of.block.intermediate(),
                of.layers,
                patches.tokens()
            ),
            (24, 40, 2, 5)
        );
        assert_eq!(of.block.feed_forward.activation, Activation::Gelu);
        assert_eq!(
            (of.block.norms[1].epsilon, of.dropout.attention),
            (1e-3, 0.1)
        );
    }
    for (json, words) in [
        (
            r#""clip", "vision_config": {"image_size": 30}"#,
            "vision_config: image_size is 30 by 30",
        ),
        (
            r#""clip", "vision_config": {"num_channels": 1}"#,
            "num_channels",
        ),
        (r#""clip", "vision_config": 3"#, "vision_config"),
        (
            r#""clip", "vision_config": {"hidden_size": 24}, "vision_config_dict": {"hidden_size": 36}"#,
            "vision_config_dict.hidden_size",
        ),
        (
            r#""clip_vision_model", "image_size": [224, 224]"#,
            "image_size",
        ),
        (r#""clip_text_model""#, "model_type"),
    ] {
        let error = refused(&format!(r#"{{"model_type": {json}}}"#));
        assert!(error.contains(words), "{json}: {error}");
    }
}

#[test]
fn old_names_of_an_image_models_modules_become_those_of_transformers_5() {
    let vit = architecture(r#"{"model_type": "vit"}"#).unwrap();
    for (stored, name) in [
        (
            "vit.encoder.layer.3.attention.attention.query.weight",
            "vit.layers.3.attention.q_proj.weight",
        ),
        (
            "encoder.layer.0.attention.output.dense.bias",
            "layers.0.attention.o_proj.bias",
        ),
        (
            "encoder.layer.11.intermediate.dense.weight",
            "layers.11.mlp.fc1.weight",
        ),
        (
            "encoder.layer.11.output.dense.weight",
            "layers.11.mlp.fc2.weight",
        ),
        (
            "encoder.layer.1.layernorm_before.weight",
            "layers.1.layernorm_before.weight",
        ),
        ("vit.embeddings.cls_token", "vit.embeddings.cls_token"),
        // What was saved under the new ones keeps them.
        (
            "vit.layers.3.attention.v_proj.weight",
            "vit.layers.3.attention.v_proj.weight",
        ),
    ] {
        assert_eq!(vit.renamed(stored), name);
    }
}

/// Which of the first layers are local, and how far a token sees there.
fn local(json: &str) -> Option<(usize, Vec<bool>)> {
    let of = architecture(json).unwrap();
    let Some(local) = &of.block.attention.local else {
        return None;
    };
    let layers = (0..of.layers.min(8)).map(|layer| local.layers.has(layer));
    Some((local.reach, layers.collect()))
}

#[test]
fn sliding_windows_are_of_the_layers_that_transformers_gives_them_to() {
    let all = |count| vec![true; count];
    for (json, expected) in [
        (r#""mistral""#, Some((4095, all(8)))),
        (r#""mistral", "sliding_window": null"#, None),
        (r#""mistral", "sliding_window": 1"#, Some((0, all(8)))),
        // As wide as the model is long.
        (
            r#""mistral", "sliding_window": 64, "max_position_embeddings": 64"#,
            None,
        ),
        (r#""llama", "sliding_window": 5"#, None),
        (r#""qwen2", "sliding_window": 5"#, None),
        (
            r#""qwen2", "use_sliding_window": true, "num_hidden_layers": 28"#,
            None,
        ),
        (
            r#""qwen3", "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 6"#,
            Some((
                4,
                vec![false, false, false, false, false, false, true, true],
            )),
        ),
        (
            r#""qwen2", "use_sliding_window": true, "num_hidden_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"]"#,
            Some((4095, vec![true, false])),
        ),
        (
            r#""gemma2", "sliding_window": 8"#,
            Some((7, vec![true, false, true, false, true, false, true, false])),
        ),
        (
            r#""gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"]"#,
            None,
        ),
        (
            r#""gemma3_text""#,
            Some((4095, vec![true, true, true, true, true, false, true, true])),
        ),
        (
            r#""gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]"#,
            Some((7, vec![true, false, true])),
        ),
        // Turned otherwise, and so kept, wide as it is.
        (
            r#""gemma3_text", "max_position_embeddings": 16, "num_hidden_layers": 1"#,
            Some((16, vec![true])),
        ),
        (r#""gemma3_text", "sliding_window_pattern": 1"#, None),
        (r#""phi3", "sliding_window": 6"#, Some((5, vec![true; 8]))),
        (r#""phi3", "sliding_window": null"#, None),
        (r#""phi3""#, None),
        (
            r#""modernbert""#,
            Some((64, vec![false, true, true, false, true, true, false, true])),
        ),
        (
            r#""modernbert", "local_attention": 7, "global_attn_every_n_layers": 2"#,
            Some((3, vec![false, true, false, true, false, true, false, true])),
        ),
        (r#""modernbert", "global_attn_every_n_layers": 1"#, None),
    ] {
        assert_eq!(
            local(&format!(r#"{{"model_type": {json}}}"#)),
            expected,
            "{json}"
        );
    }
}

#[test]
fn layers_that_turn_apart_have_frequencies_of_their_own() {
    // The second of two pairs of features: its period is the square root of θ.
    let second = |json: &str| {
        let heads = r#""hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4"#;
        let of = architecture(&format!(r#"{{"model_type": {json}, {heads}}}"#)).unwrap();
        let attention = of.block.attention;
        [false, true].map(|local| {
            let turns = attention.rotary_where(local).expect("rotary positions");
            (1.0 / turns.frequencies[1]).powi(2).round()
        })
    };
    assert_eq!(second(r#""gemma2""#), [10_000.0; 2]);
    assert_eq!(second(r#""gemma3_text""#), [1_000_000.0, 10_000.0]);
    assert_eq!(second(r#""modernbert""#), [160_000.0, 10_000.0]);
    let old = r#""gemma3_text", "rope_theta": 100, "rope_local_base_freq": 400,
        "rope_scaling": {"rope_type": "linear", "factor": 2}"#;
    assert_eq!(second(old), [400.0, 400.0]);
    let old = r#""modernbert", "global_rope_theta": 100, "local_rope_theta": 400,
        "rope_scaling": {"rope_type": "linear", "factor": 2}"#;
    assert_eq!(second(old), [400.0, 1600.0]);
    let new = r#""modernbert", "global_rope_theta": 7, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 3, "rope_theta": 100},
        "sliding_attention": {"rope_type": "default"}}"#;
    assert_eq!(second(new), [900.0, 10_000.0]);
}

#[test]
fn modernbert_and_gemma_have_the_defaults_of_transformers() {
    let bert = architecture(r#"{"model_type": "modernbert"}"#).unwrap();
    let sizes = [
        bert.vocabulary(),
        bert.hidden,
        bert.block.intermediate(),
        bert.layers,
        bert.max_length,
    ];
    assert_eq!(sizes, [50_368, 768, 1152, 22, 8192]);
    assert_eq!(
        bert.block.attention.shape,
        crate::kernel::AttentionShape::full(12, 64)
    );
    assert!(bert.block.linears().all(|linear| !linear.bias));
    assert!(
        bert.block
            .norms
            .iter()
            .all(|norm| !norm.bias && norm.epsilon == 1e-5)
    );
    assert!(bert.block.feed_forward.gated() && bert.block.first_bare);
    assert_eq!(bert.block.norms_of(0).count(), 1);
    assert_eq!(bert.block.norms_of(1).count(), 2);
    assert_eq!(bert.head.reads, crate::model::architecture::Reads::First);
    assert_eq!(bert.dropout, Default::default());
    let other = architecture(
        r#"{"model_type": "modernbert", "norm_bias": true, "attention_bias": true, "mlp_bias": true, "classifier_bias": true,
            "classifier_pooling": "mean", "classifier_activation": "silu", "hidden_activation": "relu", "norm_eps": 1e-3,
            "embedding_dropout": 0.1, "mlp_dropout": 0.2, "attention_dropout": 0.3, "classifier_dropout": 0.4}"#,
    );
    let other = other.unwrap();
    assert!(other.block.linears().all(|linear| linear.bias));
    let dense = other.head.dense.expect("a hidden layer");
    assert!(
        dense.bias
            && dense
                .norm
                .is_some_and(|norm| norm.bias && norm.epsilon == 1e-3)
    );
    assert_eq!(
        dense.function,
        crate::model::architecture::HeadFunction::Of(Activation::Silu)
    );
    assert_eq!(other.block.feed_forward.activation, Activation::Relu);
    assert_eq!(
        other.head.reads,
        crate::model::architecture::Reads::Mean { after: 0 }
    );
    let drops = [
        other.dropout.embeddings,
        other.dropout.hidden,
        other.dropout.attention,
        other.dropout.classifier,
    ];
    assert_eq!(drops, [0.1, 0.2, 0.3, 0.4]);

    for (model_type, vocabulary, positions) in
        [("gemma2", 256_000, 8192), ("gemma3_text", 262_208, 131_072)]
    {
        let gemma = architecture(&format!(r#"{{"model_type": "{model_type}"}}"#)).unwrap();
        let shape = gemma.block.attention.shape;
        let sizes = [
            gemma.vocabulary(),
            gemma.hidden,
            gemma.block.intermediate(),
            gemma.layers,
            gemma.max_length,
        ];
        assert_eq!(sizes, [vocabulary, 2304, 9216, 26, positions]);
        assert_eq!(
            [shape.heads, shape.pair_heads, shape.head_size],
            [8, 4, 256]
        );
        assert!(shape.causal && shape.scale == 1.0 / 16.0);
        let second = model_type == "gemma2";
        assert_eq!(shape.soft_cap, second.then_some(50.0));
        let head = gemma.language_head.expect("it predicts tokens");
        assert_eq!((head.tied, head.soft_cap), (true, second.then_some(30.0)));
        assert_eq!(gemma.block.attention.head_norms.is_some(), !second);
        assert_eq!(gemma.words().and_then(|words| words.scale), Some(48.0));
        assert_eq!(gemma.block.feed_forward.activation, Activation::GeluNew);
        assert_eq!(gemma.block.norms_of(0).count(), 4);
        assert!(
            gemma
                .block
                .norms_of(0)
                .all(|norm| norm.less_one && norm.epsilon == 1e-6)
        );
    }
    let bare = r#"{"model_type": "gemma2", "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "query_pre_attn_scalar": 64, "hidden_act": "relu", "hidden_activation": "relu"}"#;
    let bare = architecture(bare).unwrap();
    assert_eq!(bare.block.attention.shape.soft_cap, None);
    assert_eq!(bare.language_head.and_then(|head| head.soft_cap), None);
    assert_eq!(bare.block.attention.shape.scale, 0.125);
}

#[test]
fn what_modernbert_and_gemma_do_not_do_is_refused_by_name() {
    for (json, words) in [
        (
            r#""modernbert", "classifier_pooling": "max""#,
            "classifier_pooling",
        ),
        (r#""modernbert", "hidden_size": 36"#, "hidden_size"),
        (
            r#""modernbert", "global_attn_every_n_layers": 0"#,
            "global_attn_every_n_layers",
        ),
        (
            r#""modernbert", "layer_types": ["full_attention"]"#,
            "layer_types",
        ),
        (
            r#""modernbert", "num_hidden_layers": 2, "layer_types": ["full_attention", "chunked_attention"]"#,
            "chunked_attention",
        ),
        (
            r#""modernbert", "num_hidden_layers": 2, "global_attn_every_n_layers": 1,
                "layer_types": ["full_attention", "sliding_attention"]"#,
            "global_attn_every_n_layers says otherwise",
        ),
        (
            r#""modernbert", "rope_parameters": {"rope_theta": 3}"#,
            "rope_parameters.rope_theta",
        ),
        (
            r#""modernbert", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}"#,
            "rope_parameters.full_attention.rope_type",
        ),
        (
            r#""gemma3_text", "rope_parameters": {}, "rope_scaling": {"rope_type": "linear", "factor": 2}"#,
            "rope_scaling",
        ),
        (
            r#""gemma3_text", "attn_logit_softcapping": 50"#,
            "attn_logit_softcapping",
        ),
        (
            r#""gemma2", "attn_logit_softcapping": 0"#,
            "attn_logit_softcapping",
        ),
        (
            r#""gemma2", "final_logit_softcapping": "a""#,
            "final_logit_softcapping",
        ),
        (
            r#""gemma2", "use_bidirectional_attention": true"#,
            "use_bidirectional_attention",
        ),
        (r#""gemma2", "hidden_act": "gelu""#, "hidden_act"),
        (r#""gemma2", "sliding_window": null"#, "sliding_window"),
        (r#""gemma2", "head_dim": 7"#, "head_dim"),
        (
            r#""gemma2", "query_pre_attn_scalar": 0"#,
            "query_pre_attn_scalar",
        ),
        (r#""gemma2", "rope_theta": 0"#, "rope_theta"),
        (
            r#""qwen2", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]"#,
            "sliding_window",
        ),
    ] {
        let error = refused(&format!(r#"{{"model_type": {json}}}"#));
        assert!(error.contains(words), "{json}: {error}");
    }
}

#[test]
fn deberta_has_the_defaults_of_transformers_and_refuses_what_it_does_not_do() {
    let plain = architecture(r#"{"model_type": "deberta-v2"}"#).unwrap();
    let sizes = [
        plain.vocabulary(),
        plain.hidden,
        plain.block.intermediate(),
        plain.layers,
        plain.max_length,
    ];
    assert_eq!(sizes, [128_100, 1536, 6144, 24, 512]);
    assert_eq!(plain.block.attention.relative, None);
    assert_eq!(
        plain.block.attention.shape,
        crate::kernel::AttentionShape::full(24, 64)
    );
    assert!(
        plain
            .words()
            .is_some_and(|words| words.positions.is_some() && words.types.is_none())
    );
    let third = r#""relative_attention": true, "share_att_key": true, "pos_att_type": "p2c|c2p""#;
    let read = |rest: &str| {
        let json = format!(r#"{{"model_type": "deberta-v2", {third}, {rest}}}"#);
        architecture(&json).unwrap().block.attention
    };
    // As published: 256 rows on each side, distances up to 128 apart, the rest by logarithms up to 511.
    let published = read(
        r#""position_buckets": 256, "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "pooler_dropout": 0,
            "pooler_hidden_size": 1536"#,
    );
    assert!((published.shape.scale - 1.0 / 192f32.sqrt()).abs() < 1e-7);
    let relative = published.relative.expect("relative positions");
    assert_eq!(
        (relative.table.entries, relative.buckets),
        (512, Some([256, 512]))
    );
    assert!(relative.norm.is_some());
    for (distance, row) in [
        (0, 256),
        (1, 257),
        (-128, 128),
        (128, 384),
        (511, 511),
        (-511, 1),
        (600, 511),
        (-9999, 0),
    ] {
        assert_eq!(relative.row(distance), row, "{distance}");
    }
    assert_eq!(relative.row(129) - 256, 129);
    let plain = read(r#""max_relative_positions": 4"#)
        .relative
        .expect("relative positions");
    assert_eq!((plain.table.entries, plain.norm), (8, None));
    assert_eq!(
        [-9, -4, -1, 0, 3, 9].map(|distance| plain.row(distance)),
        [0, 0, 3, 4, 7, 7]
    );

    for (key, words) in [
        (r#""relative_attention": true"#, "pos_att_type"),
        (
            r#""relative_attention": true, "pos_att_type": ["c2p"]"#,
            "pos_att_type",
        ),
        (
            r#""relative_attention": true, "pos_att_type": ["c2p", "p2c"]"#,
            "share_att_key",
        ),
        (r#""conv_kernel_size": 3"#, "conv_kernel_size"),
        (r#""embedding_size": 128"#, "embedding_size"),
        (r#""pooler_dropout": 0.1"#, "pooler_dropout"),
        (r#""pooler_hidden_size": 8"#, "pooler_hidden_size"),
        (
            r#""relative_attention": true, "pos_att_type": "c2p|p2c", "share_att_key": true, "norm_rel_ebd": "batch""#,
            "norm_rel_ebd",
        ),
        (
            r#""relative_attention": true, "pos_att_type": "c2p|p2c", "share_att_key": true, "position_buckets": 2"#,
            "position_buckets",
        ),
    ] {
        let error = refused(&format!(r#"{{"model_type": "deberta-v2", {key}}}"#));
        assert!(error.contains(words), "{key}: {error}");
    }
}
