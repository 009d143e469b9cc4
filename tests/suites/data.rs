//! Real data sets in their published files.

use dynalora::data::{DataConfig, Example, Label, Problem, Splits, Task, read};
use dynalora_tests::shared_data;

/// The splits of a task in the shared folder; none where it is absent.
fn splits(task: Task) -> Option<Splits> {
    let config = DataConfig {
        task: Some(task),
        dir: Some(shared_data(&format!("glue/{task}"))?),
        ..DataConfig::default()
    };
    Some(read(&config).unwrap_or_else(|error| panic!("{task}: {error}")))
}

fn of_class(examples: &[Example], class: u32) -> usize {
    let label = Some(Label::Class(class));
    examples.iter().filter(|e| e.label == label).count()
}

fn validation(splits: &Splits) -> &[Example] {
    assert_eq!(splits.validation.len(), 1);
    assert_eq!(splits.validation[0].0, "validation");
    &splits.validation[0].1
}

#[test]
fn cola() {
    let Some(splits) = splits(Task::Cola) else {
        return;
    };
    assert_eq!(splits.train.len(), 8551);
    assert_eq!(validation(&splits).len(), 1043);
    // `awk -F'\t' '$2 == 1' | wc -l`
    assert_eq!(of_class(&splits.train, 1), 6023);
    assert_eq!(
        splits.train[0].text,
        "Our friends won't buy this analysis, let alone the next one we propose."
    );
    assert!(
        splits
            .train
            .iter()
            .all(|example| example.text_pair.is_none())
    );
}

#[test]
fn mrpc_has_quotes_that_nobody_closes() {
    let Some(splits) = splits(Task::Mrpc) else {
        return;
    };
    // 4,080 pairs below the header: Microsoft's 4,076 and four more.
    assert_eq!(splits.train.len(), 4080);
    assert_eq!(validation(&splits).len(), 1725);
    assert_eq!(of_class(&splits.train, 1), 2755);
    assert_eq!(
        splits.train[0].text_pair.as_deref(),
        Some(
            "Referring to him as only \"the witness\", Amrozi accused his brother of deliberately distorting his evidence."
        )
    );
    // The test split has labels and stands in for the missing dev split.
    assert_eq!(splits.test[0].1, validation(&splits));
}

#[test]
fn stsb_has_rows_of_seven_and_of_nine_columns() {
    let Some(splits) = splits(Task::Stsb) else {
        return;
    };
    assert_eq!(splits.problem, Problem::Regression);
    assert_eq!(splits.train.len(), 5749);
    assert_eq!(validation(&splits).len(), 1500);
    let scores: Vec<Label> = splits.train.iter().filter_map(|e| e.label).collect();
    let scores = Label::values(&scores).expect("values");
    assert_eq!(scores.len(), 5749);
    assert!(scores.iter().all(|score| (0.0..=5.0).contains(score)));
    let sum: f64 = scores.iter().map(|score| f64::from(*score)).sum();
    assert!((sum - 15528.043).abs() < 0.01, "{sum}");
    assert_eq!(splits.train[0].text, "A plane is taking off.");
}

#[test]
fn sst2_at_sentence_level() {
    let Some(splits) = splits(Task::Sst2) else {
        return;
    };
    assert_eq!(splits.train.len(), 6920);
    assert_eq!(validation(&splits).len(), 1821);
    assert_eq!(of_class(&splits.train, 1), 3610);
    assert_eq!(of_class(validation(&splits), 0), 912);
}
