//! Adapters merged into their base models answer as they did beside them.

use dynalora_tests::{Scene, contains, fixture};
use serde_json::Value;

/// A scene whose recipe trains this model, with other lines in place of its data and its targets.
fn scene(model: &str, data: &str, targets: &str) -> Scene {
    let scene = Scene::new();
    let recipe = scene
        .recipe_text()
        .replace(
            &fixture("tiny-bert").display().to_string(),
            &fixture(model).display().to_string(),
        )
        .replace("[data]\n", &format!("[data]\n{data}\n"))
        .replace("[\"query\", \"value\", \"dense\"]", targets);
    scene.write("recipe.toml", &recipe);
    scene
}

/// Loss and metrics of what a run has exported.
fn evaluated(scene: &Scene, run: &str) -> (f64, Value) {
    let run = scene.path(run).display().to_string();
    let said = scene.ok(&["evaluate", &run, "--json"]);
    let scores: Value = serde_json::from_str(&said).expect("JSON");
    let score = &scores[0];
    (
        score["loss"].as_f64().expect("a number"),
        score["metrics"].clone(),
    )
}

#[test]
fn a_merged_model_answers_as_the_adapter_did() {
    let all = "\"all-linear\"";
    for (model, data, targets, class) in [
        ("tiny-bert", "", all, "BertForSequenceClassification"),
        (
            "tiny-bert-pretraining",
            "",
            all,
            "BertForSequenceClassification",
        ),
        ("tiny-bert-bf16", "", all, "BertForSequenceClassification"),
        ("tiny-roberta", "", all, "RobertaForSequenceClassification"),
        (
            "tiny-distilbert",
            "",
            all,
            "DistilBertForSequenceClassification",
        ),
        ("tiny-llama", "", all, "LlamaForSequenceClassification"),
        (
            "tiny-deberta",
            "",
            all,
            "DebertaV2ForSequenceClassification",
        ),
        (
            "tiny-modernbert",
            "",
            all,
            "ModernBertForSequenceClassification",
        ),
        (
            "tiny-modernbert-biased",
            "",
            all,
            "ModernBertForSequenceClassification",
        ),
        (
            "tiny-gemma2",
            "problem = \"causal-lm\"",
            all,
            "Gemma2ForCausalLM",
        ),
        (
            "tiny-gemma3",
            "",
            all,
            "Gemma3TextForSequenceClassification",
        ),
        (
            "tiny-gemma3",
            "problem = \"causal-lm\"",
            all,
            "Gemma3ForCausalLM",
        ),
        (
            "tiny-phi3",
            "problem = \"causal-lm\"",
            all,
            "Phi3ForCausalLM",
        ),
        (
            "tiny-qwen3",
            "problem = \"causal-lm\"",
            all,
            "Qwen3ForCausalLM",
        ),
        (
            "tiny-gpt2",
            "problem = \"causal-lm\"",
            all,
            "GPT2LMHeadModel",
        ),
        (
            "tiny-bert",
            "",
            "[\"word_embeddings\", \"position_embeddings\", \"query\"]",
            "BertForSequenceClassification",
        ),
        // Of these the table is the head too, which stays what it was.
        (
            "tiny-gpt2",
            "problem = \"causal-lm\"",
            "[\"wte\", \"wpe\", \"c_attn\"]",
            "GPT2LMHeadModel",
        ),
        (
            "tiny-gemma2",
            "problem = \"causal-lm\"",
            "[\"embed_tokens\"]",
            "Gemma2ForCausalLM",
        ),
        (
            "formats/bin-tied",
            "problem = \"causal-lm\"",
            "[\"wte\"]",
            "GPT2LMHeadModel",
        ),
    ] {
        let scene = scene(model, data, targets);
        scene.train("run", &[]);
        let (run, merged) = (scene.path("run"), scene.path("merged"));
        let merged = merged.display().to_string();
        scene.ok(&["merge", &run.display().to_string(), "--output", &merged]);
        let config = std::fs::read_to_string(scene.path("merged/config.json")).expect("a config");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let untied =
            data.contains("causal") && (targets.contains("embed") || targets.contains("wte"));
        assert_eq!(
            config["tie_word_embeddings"] == false,
            untied || ["tiny-qwen3", "tiny-phi3"].contains(&model)
        );
        assert_eq!(config["architectures"], serde_json::json!([class]));
        // Nothing that trains moves in a step of such a rate, and the head is the checkpoint's.
        let name = format!("model.name={merged}");
        let sets = [
            &name,
            "train.steps=1",
            "train.learning_rate=1e-30",
            "train.weight_decay=0",
        ];
        scene.train("again", &sets);
        let ((loss, metrics), (again, same)) =
            (evaluated(&scene, "run"), evaluated(&scene, "again"));
        assert!(
            (loss - again).abs() < 1e-5 * loss.abs(),
            "{model}: {loss}, merged {again}"
        );
        if data.is_empty() {
            assert_eq!(metrics, same, "{model}");
        }
        let output = scene.run(&["merge", &run.display().to_string(), "--output", &merged]);
        assert_eq!(output.status.code(), Some(2));
        contains(&output, &["merged", "not empty", "another folder"]);
    }
}
