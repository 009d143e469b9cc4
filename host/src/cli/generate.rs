//! `dynalora generate`

mod sample;

use std::io::Write;
use std::path::PathBuf;

use dynalora_plugin_api::Trial;
use serde::Serialize;

use super::predict::texts;
use super::session::{self, OnDevice, Session};
use super::{Common, print, printed};
use crate::adapter::Pass;
use crate::data::{Encoder, Places, Problem};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::plugin::guard;
use crate::train::evaluate;
use crate::train::trainee::{Trainee, read};
use crate::trained::{Purpose, Trained};
use sample::Sampler;

/// Arguments of `dynalora generate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A run's folder, or a PEFT adapter's
    target: PathBuf,
    /// Texts to go on with; without any, lines of standard input
    prompts: Vec<String>,
    /// The most tokens that are added to a text
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_new_tokens: usize,
    /// What logits are divided by before a token is drawn; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Draw among the so many likeliest tokens alone
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// The seed of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Take each text for what a user says, and write it as the model's chat template says
    #[arg(long)]
    chat: bool,
    /// Leave the adapter out: the base model's own text
    #[arg(long)]
    base: bool,
    /// Print one JSON object a line, with the text and the numbers of its tokens
    #[arg(long)]
    json: bool,
    /// The recipe whose model to use; a run has its own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe that acts on the answers, such as model.name
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Threads to compute with on the CPU; by default the recipe's
    #[arg(long, value_parser = session::threads())]
    threads: Option<usize>,
}

/// Goes on with each text until its end, as it is drawn.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let sampler = Sampler::new(arguments.temperature, arguments.top_k, arguments.top_p)?;
    let recipe = arguments.recipe.as_deref();
    let trained = Trained::open(&arguments.target, recipe, &arguments.set, Purpose::Predict)?;
    if trained.learnt.problem != Problem::CausalLm {
        return Err(Error::user(format!(
            "{} was trained for {}: it predicts no tokens",
            arguments.target.display(),
            trained.learnt.problem
        ))
        .help(
            "train with `problem = \"causal-lm\"` in [data], or ask it with `dynalora predict`",
        ));
    }
    session::use_threads(arguments.threads.or(trained.recipe.threads))?;
    let encoder = trained.encoder()?;
    let template = arguments
        .chat
        .then(|| trained.chat_template())
        .transpose()?;
    let (prompts, places) = texts(&arguments.prompts)?;
    let mut encoded = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let ids = match &template {
            Some(template) => {
                let written = template.question(&prompt);
                written.and_then(|written| encoder.written(&written))
            }
            None => encoder.prompt(&prompt),
        };
        let ids = fitting(ids, &places.name(index), &trained)?;
        encoded.push((ids, prompt));
    }
    let session = Session::start(&trained.recipe, common)?;
    session.on_device(Generate {
        trained: &trained,
        encoder: &encoder,
        prompts: &encoded,
        places: &places,
        arguments,
        sampler,
    })
}

/// The tokens of a prompt, of which there must be some, and as many as the model has positions for.
fn fitting(ids: Result<Vec<u32>, String>, place: &str, trained: &Trained) -> Result<Vec<u32>> {
    let refuse = |what: String| {
        Err(Error::user(format!("{place}: {what}"))
            .help("give a shorter text, or one with something in it"))
    };
    let longest = trained.longest();
    match ids {
        Err(what) => refuse(what),
        Ok(ids) if ids.is_empty() => refuse("it comes to no tokens".to_owned()),
        Ok(ids) if ids.len() > longest => refuse(format!(
            "it comes to {} tokens, but the model has positions for {longest}",
            ids.len()
        )),
        Ok(ids) => Ok(ids),
    }
}

/// What is printed of a text under `--json`.
#[derive(Serialize)]
struct Generated<'a> {
    prompt: &'a str,
    text: String,
    tokens: &'a [u32],
    /// Whether the model has ended the text, rather than the limit.
    ended: bool,
}

struct Generate<'a> {
    trained: &'a Trained,
    encoder: &'a Encoder,
    prompts: &'a [(Vec<u32>, String)],
    places: &'a Places,
    arguments: &'a Arguments,
    sampler: Sampler,
}

impl OnDevice for Generate<'_> {
    type Output = ();

    fn run<B: Kernels>(self, device: &B::Device) -> Result<()> {
        let trainee = self.trained.load::<B>(device)?;
        for (index, (ids, prompt)) in self.prompts.iter().enumerate() {
            let (tokens, ended) = self.one(&trainee, ids, prompt, index, device)?;
            if self.arguments.json {
                let text = self.encoder.decode(&tokens).map_err(Error::failure)?;
                let line = serde_json::to_string(&Generated {
                    prompt,
                    text,
                    tokens: &tokens,
                    ended,
                });
                print(&line.map_err(|error| Error::failure(error.to_string()))?)?;
            }
        }
        Ok(())
    }
}

impl Generate<'_> {
    /// The tokens that follow a prompt, shown as they come; whether the text has ended.
    fn one<B: Kernels>(
        &self,
        trainee: &Trainee<B>,
        prompt: &[u32],
        text: &str,
        index: usize,
        device: &B::Device,
    ) -> Result<(Vec<u32>, bool)> {
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        if self.arguments.base {
            pass.change(&Trial::scaled(vec![0.0; trainee.adapters.modules.len()]));
        }
        // Each text has draws of its own, whichever stand before it.
        let mut random = self.sampler.start(self.arguments.seed, index as u64);
        let mut past = trainee.model.base.past();
        let (mut tokens, mut shown) = (Vec::<u32>::new(), String::new());
        let show = |part: &str| match self.arguments.json {
            true => Ok(()),
            false => stream(part),
        };
        show(text)?;
        let room = self.trained.longest() - prompt.len();
        let mut next = prompt.to_vec();
        let mut ended = false;
        while tokens.len() < self.arguments.max_new_tokens && tokens.len() <= room {
            let logits = trainee.model.continued(&next, &mut past, device, &mut pass);
            let logits = read(logits)?;
            if let Some(logit) = logits.iter().find(|logit| !logit.is_finite()) {
                return Err(evaluate::not_finite(&self.places.name(index), *logit));
            }
            let token = self.sampler.next(&logits, &mut random);
            if self.encoder.end() == Some(token) {
                ended = true;
                break;
            }
            tokens.push(token);
            next = vec![token];
            // A character of several bytes can take several tokens.
            let all = self.encoder.decode(&tokens).map_err(Error::failure)?;
            if !all.ends_with('\u{fffd}') && all.len() > shown.len() {
                show(all.get(shown.len()..).unwrap_or_default())?;
                shown = all;
            }
        }
        show("\n")?;
        Ok((tokens, ended))
    }
}

/// Prints a part of a line at once.
fn stream(part: &str) -> Result<()> {
    let mut out = guard::stdout();
    printed(out.write_all(part.as_bytes()).and_then(|()| out.flush()))
}
