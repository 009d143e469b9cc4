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
        // A token sees 4096 others.
        ("mistral", [32_000, 4096, 14_336, 32, 8, 128, 4096]),
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
    assert_eq!(
        read("mistral", r#", "sliding_window": null"#).max_length,
        131_072
    );
    let window = r#", "use_sliding_window": true, "sliding_window": 100"#;
    assert_eq!(read("qwen2", window).max_length, 100);
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
