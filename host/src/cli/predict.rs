//! `dynalora predict`

use std::io::BufRead;
use std::path::PathBuf;

use serde::Serialize;

use super::session::{self, OnDevice, Session};
use super::{Common, print};
use crate::data::words::Sentence;
use crate::data::{Encoded, Example, Places, Problem};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::train::evaluate;
use crate::trained::{Purpose, Trained};

/// Arguments of `dynalora predict`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A run's folder, or a PEFT adapter's
    target: PathBuf,
    /// Texts to label, or files of images; without any, lines of standard input. In a run on pairs a tab parts the two
    /// texts, in one on words blanks part them
    texts: Vec<String>,
    /// The recipe whose model to use; a run has its own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe that acts on predictions, such as model.max_length
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Threads to compute with on the CPU; by default the recipe's
    #[arg(long, value_parser = session::threads())]
    threads: Option<usize>,
    /// Print one JSON object a line, with the logits, and the probability of each label, or of each word's
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Prediction {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_pair: Option<String>,
    #[serde(flatten)]
    answer: Answer,
    logits: Vec<f32>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Class {
        label: String,
        probabilities: Vec<(String, f64)>,
    },
    Value {
        value: f32,
    },
}

/// A tagged sentence.
#[derive(Debug, Serialize)]
struct Tagged {
    words: Vec<String>,
    /// Of each word; none of one that the model has not read.
    tags: Vec<Option<String>>,
    /// The probability of each of these.
    probabilities: Vec<Option<f64>>,
    logits: Vec<Option<Vec<f32>>>,
}

/// What stands for the tag of a word that the model has not read.
const UNREAD: &str = "_";

/// Labels texts or images, or the words of sentences, one line each, in the order they come in.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let trained = Trained::open(
        &arguments.target,
        arguments.recipe.as_deref(),
        &arguments.set,
        Purpose::Predict,
    )?;
    if trained.learnt.problem == Problem::CausalLm {
        return Err(Error::user(format!(
            "{} was trained to predict tokens: it gives texts no labels",
            arguments.target.display()
        ))
        .help("measure it with `dynalora evaluate`"));
    }
    session::use_threads(arguments.threads.or(trained.recipe.threads))?;
    let (texts, places) = texts(&arguments.texts)?;
    if texts.is_empty() {
        return Err(Error::user("there is nothing to label")
            .help("give texts, or for a run on images their files, as arguments or one a line on standard input"));
    }
    if trained.learnt.problem == Problem::TokenClassification {
        return tag(&trained, texts, &places, arguments, common);
    }
    let examples = examples(texts, trained.learnt.text_pair, &places)?;
    let encoded = match trained.reads_images() {
        true => {
            let paths = examples.iter().map(|example| PathBuf::from(&example.text));
            trained.images()?.files(&paths.collect::<Vec<_>>())?
        }
        false => trained.tokenize(&examples, &places)?,
    };
    let session = Session::start(&trained.recipe, common)?;
    let logits = session.on_device(Predict {
        trained: &trained,
        encoded: &encoded,
    })?;
    let labels = &trained.learnt.labels;
    for (example, logits) in examples.into_iter().zip(logits) {
        let answer = match trained.learnt.problem {
            Problem::Regression => Answer::Value { value: logits[0] },
            Problem::CausalLm | Problem::TokenClassification => unreachable!("dealt with above"),
            Problem::Classification => Answer::Class {
                label: labels[evaluate::class(&logits) as usize].clone(),
                probabilities: labels.iter().cloned().zip(softmax(&logits)).collect(),
            },
        };
        let prediction = Prediction {
            text: example.text,
            text_pair: example.text_pair,
            answer,
            logits,
        };
        if arguments.json {
            print_line(&prediction)?;
            continue;
        }
        let text = match prediction.text_pair {
            Some(pair) => format!("{}\t{pair}", prediction.text),
            None => prediction.text,
        };
        print(&match prediction.answer {
            Answer::Value { value } => format!("{value:.4}\t{text}"),
            Answer::Class {
                label,
                probabilities,
            } => {
                let best = probabilities.iter().map(|(_, p)| *p).fold(0.0, f64::max);
                format!("{label}\t{best:.4}\t{text}")
            }
        })?;
    }
    Ok(())
}

/// Tags the words of each text, which blanks part.
fn tag(
    trained: &Trained,
    texts: Vec<String>,
    places: &Places,
    arguments: &Arguments,
    common: &Common,
) -> Result<()> {
    let sentences = examples(texts, false, places)?.into_iter().map(|example| {
        let words = example.text.split_whitespace();
        Sentence {
            words: words.map(str::to_owned).collect(),
            classes: None,
        }
    });
    let sentences: Vec<Sentence> = sentences.collect();
    let encoded = trained.tokenize_words(&sentences, places)?;
    let session = Session::start(&trained.recipe, common)?;
    let mut logits = session
        .on_device(Predict {
            trained,
            encoded: &encoded,
        })?
        .into_iter();
    let read = encoded.words.as_ref().expect("they are sentences in words");
    for (index, Sentence { words, .. }) in sentences.into_iter().enumerate() {
        let mut tagged = Tagged {
            tags: vec![None; words.len()],
            probabilities: vec![None; words.len()],
            logits: vec![None; words.len()],
            words,
        };
        for answer in encoded.answers(index) {
            let word = read.numbers[answer] as usize;
            let logits = logits.next().expect("one for each answer");
            let class = evaluate::class(&logits) as usize;
            tagged.tags[word] = Some(trained.learnt.labels[class].clone());
            tagged.probabilities[word] = Some(softmax(&logits)[class]);
            tagged.logits[word] = Some(logits);
        }
        if arguments.json {
            print_line(&tagged)?;
            continue;
        }
        let tags = tagged.tags.iter().map(|tag| tag.as_deref());
        let tags: Vec<&str> = tags.map(|tag| tag.unwrap_or(UNREAD)).collect();
        print(&format!("{}\t{}", tags.join(" "), tagged.words.join(" ")))?;
    }
    Ok(())
}

/// Prints a JSON object on one line.
fn print_line(answer: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(answer)
        .map_err(|error| Error::failure(format!("cannot write a prediction: {error}")))?;
    print(&line)
}

/// Texts as the run was trained on them. None is dropped, so that output line i answers input line i; what was
/// refused in the training data is refused here.
fn examples(texts: Vec<String>, pairs: bool, places: &Places) -> Result<Vec<Example>> {
    let refuse = |index: usize, what: &str, help: &str| {
        Err(Error::user(format!("{}: {what}", places.name(index))).help(help))
    };
    let texts = texts.into_iter().enumerate().map(|(index, text)| {
        if text.trim().is_empty() {
            return refuse(
                index,
                "the text is empty",
                "take empty lines out: none is answered, so that each line of the output belongs to one of the input",
            );
        }
        if !pairs {
            // A tab is as good as any other blank.
            return Ok(Example {
                text,
                text_pair: None,
                label: None,
            });
        }
        let mut parts = text.split('\t');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(first), Some(second), None)
                if !first.trim().is_empty() && !second.trim().is_empty() =>
            {
                Ok(Example {
                    text: first.to_owned(),
                    text_pair: Some(second.to_owned()),
                    label: None,
                })
            }
            (_, None, _) => refuse(
                index,
                "one text, where the run was trained on pairs",
                "give both texts with a tab between them",
            ),
            (_, Some(_), None) => refuse(
                index,
                "one of the two texts is empty",
                "give both texts with a tab between them",
            ),
            _ => refuse(
                index,
                "more than one tab, so that it is not clear where the second text begins",
                "give both texts with one tab between them, and blanks in place of other tabs",
            ),
        }
    });
    texts.collect()
}

/// The texts of a command line, or without any the lines of standard input, and what they are called.
pub fn texts(given: &[String]) -> Result<(Vec<String>, Places)> {
    if !given.is_empty() {
        return Ok((given.to_vec(), Places::numbered("", "text")));
    }
    let places = Places::numbered("standard input", "line");
    let lines = std::io::stdin().lock().lines().enumerate();
    let lines = lines.map(|(index, line)| {
        line.map_err(|error| {
            Error::user(format!("{} cannot be read: {error}", places.name(index)))
                .help("texts must be UTF-8")
        })
    });
    Ok((lines.collect::<Result<_>>()?, places))
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

struct Predict<'a> {
    trained: &'a Trained,
    encoded: &'a Encoded,
}

impl OnDevice for Predict<'_> {
    type Output = Vec<Vec<f32>>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Vec<Vec<f32>>> {
        let trainee = self.trained.load::<B>(device)?;
        let tokens = self.trained.recipe.evaluation.batch_tokens;
        evaluate::logits(&trainee, self.encoded, tokens, device)
    }
}
