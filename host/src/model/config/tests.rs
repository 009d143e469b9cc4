//! What is read of a `config.json`, family by family, against Transformers' configuration classes (5.23).

use super::*;

fn read(json: &str) -> Result<EncoderConfig> {
    Json::new(json, Path::new("config.json"))?.encoder()
}

fn refused(json: &str) -> String {
    let error = read(json).expect_err(json);
    let help = miette::Diagnostic::help(&error).map(|help| help.to_string());
    format!("{error}\n{}", help.unwrap_or_default())
}

/// What `BertConfig()` and its siblings say.
fn default_of(family: Family) -> EncoderConfig {
    EncoderConfig {
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
    let bert = default_of(Family::Bert);
    assert_eq!(read(r#"{"model_type": "bert"}"#).unwrap(), bert);
    let xlm = EncoderConfig {
        first_position: 2,
        ..default_of(Family::Roberta)
    };
    let roberta = EncoderConfig {
        vocabulary: 50_265,
        ..xlm.clone()
    };
    assert_eq!(read(r#"{"model_type": "roberta"}"#).unwrap(), roberta);
    assert_eq!(read(r#"{"model_type": "xlm-roberta"}"#).unwrap(), xlm);
    assert_eq!(read(r#"{"model_type": "camembert"}"#).unwrap(), xlm);
    let distilbert = EncoderConfig {
        token_types: 0,
        layers: 6,
        classifier_dropout: 0.2,
        ..default_of(Family::DistilBert)
    };
    assert_eq!(read(r#"{"model_type": "distilbert"}"#).unwrap(), distilbert);
}

type Change = fn(&mut EncoderConfig);

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
        ("gpt2", r#""n_embd": 8"#, "model_type"),
    ] {
        let error = refused(&format!(r#"{{"model_type": "{model_type}", {key}}}"#));
        assert!(error.contains(words), "{key}: {error}");
    }
}

#[test]
fn a_missing_model_type_is_the_architectures() {
    for (class, family) in [
        ("BertModel", Family::Bert),
        ("BertForMaskedLM", Family::Bert),
        ("RobertaForSequenceClassification", Family::Roberta),
        ("XLMRobertaForMaskedLM", Family::Roberta),
        ("CamembertModel", Family::Roberta),
        ("DistilBertForMaskedLM", Family::DistilBert),
    ] {
        let config = read(&format!(r#"{{"architectures": ["{class}"]}}"#)).unwrap();
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
