//! The scorer `trial`: what the loss says with a part of the adapters suppressed, on training examples held back.
//!
//! Each is a forward pass without gradient, whose operations count as the run's. The parts are single modules or,
//! with `by = "layer"`, all modules of a layer; a part's score is spread evenly over its modules, so that a layer
//! under `unit = "layer"`, which sums them, has it back.
//!
//! **`method = "ablation"`.** Each part by itself, by how much the mean loss rises with it off (`factor = 0`):
//!
//! ```text
//! yᵢ = L(ΔWᵢ → factor · ΔWᵢ) − L
//! ```
//!
//! A negative increase means that the model is at present better without the part's adapter. That is no measure of
//! what training would make of it: such a part scores 0, as unimportant as one that does nothing, or, with `negative
//! = "size"`, by its size, as one that matters this way or that. The increase itself, with its sign, is recorded as
//! `increase`. Where there are more parts than `passes`, they take turns from one reallocation to the next; one that
//! was not tried keeps the increase of its last trial, and before its first has the mean of those that were.
//!
//! An adapter that has never trained has B = 0, and is not missed: begin with `initial = "all"`, or the first choice is
//! the last.
//!
//! **`method = "reinforced"`.** IST (Yao et al. 2024, "Layer-wise Importance Matters", algorithm 1), as its authors'
//! program has it. Each part has a value I, at first 0, the larger the less it was missed. Every `interval` steps
//! `candidates` different sets of `suppressed` parts are drawn, without replacement in proportion to σ(I), and the
//! loss is taken with each set's adapters scaled by `factor`. With r the rewards, for each part of each set S:
//!
//! ```text
//! r_S = exp(−L_S) − mean over sets of exp(−L)        I ← I + rate · r_S · p (1 − p)        p = σ(I)        y = σ(−I)
//! ```
//!
//! with p as it was before the update. An allocator that draws in proportion to y (`multinomial`) then draws as IST
//! does: `schedule = { kind = "periodic", every = 1 }`, `unit = "layer"`, `k = "25%"` and `by = "layer"` are its
//! setting. Ours: I is kept within ±500; where fewer different sets are found than asked for, those are taken.

use std::collections::BTreeMap;

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Count, ModuleInfo, Needs, Numbers, Observation, Plugin, Random, Result, ScoreRequest, Scorer,
    Trial, TrialRequest, Trials, draw_without_replacement, export_plugin, load_state, save_state,
};

/// Parameters of `trial`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// What is made of the losses.
    method: Method,
    /// What is suppressed: single modules, or all modules of a layer.
    by: By,
    /// Training examples that are held back and never trained on.
    #[schemars(range(min = 1))]
    held_back: u64,
    /// How many of them a trial takes, drawn anew for each reallocation; 0 takes all.
    examples: u64,
    /// What a suppressed adapter's output is multiplied by; 0 is off. By default 0, of `reinforced` 0.25.
    #[schemars(range(min = 0.0))]
    factor: Option<f32>,
    /// Of `ablation`: the score of what the loss falls without.
    negative: Negative,
    /// Of `ablation`: how many modules or layers are tried at a reallocation; where there are more, they take turns.
    #[schemars(range(min = 1))]
    passes: u64,
    /// Of `reinforced`: how many sets are tried at an update.
    #[schemars(range(min = 2))]
    candidates: u64,
    /// Of `reinforced`: how many modules or layers a set has: a count, or a share such as "50%".
    #[schemars(extend("default" = "50%"))]
    suppressed: Count,
    /// Of `reinforced`: the rate of the update, above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    rate: f64,
    /// Of `reinforced`: steps from one update to the next, and to the first; reallocations in between go by the last.
    #[schemars(range(min = 1))]
    interval: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            method: Method::Ablation,
            by: By::Module,
            held_back: 64,
            examples: 0,
            factor: None,
            negative: Negative::Zero,
            passes: 256,
            candidates: 3,
            suppressed: Count::Percent(50.0),
            rate: 10.0,
            interval: 10,
        }
    }
}

/// What is made of the losses.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Method {
    /// By how much the loss rises without each part.
    #[default]
    Ablation,
    /// IST's importance, reinforced by trials of sets.
    Reinforced,
}

/// What is suppressed at once.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum By {
    /// One module.
    #[default]
    Module,
    /// All modules of a layer; one outside the layers by itself.
    Layer,
}

/// The score of a part that the loss falls without.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Negative {
    /// 0: it is not important.
    #[default]
    Zero,
    /// By how much it falls.
    Size,
}

/// The plugin.
pub struct TrialScorer {
    parameters: Parameters,
    factor: f32,
    /// The modules of each part.
    parts: Vec<Vec<usize>>,
    modules: usize,
    /// How many parts a candidate has.
    suppressed: usize,
    state: State,
}

/// What a checkpoint keeps.
#[derive(Clone, Deserialize, dynalora_plugin_api::serde::Serialize)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
struct State {
    /// Of each part: `I`, or how much its suppression raised the loss; none before its first trial.
    values: Vec<Option<f64>>,
    /// The step of the last update; none before the first.
    updated: Option<u64>,
}

impl Plugin for TrialScorer {
    type Parameters = Parameters;

    const NAME: &'static str = "trial";
    const DESCRIPTION: &'static str = "Tries what the loss becomes with modules or layers suppressed: by each, or by sets as IST does.";
    const REFERENCE: &'static str =
        "reinforced: Yao et al. 2024, IST, algorithm 1, and its program; ablation: none";
    const FORMULA: &'static str = "yᵢ = L(ΔWᵢ → factor · ΔWᵢ) − L\nr_S = exp(−L_S) − mean over sets of exp(−L)        I ← I + rate · r_S · p (1 − p)        p = σ(I)        y = σ(−I)";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let factor = parameters.factor.unwrap_or(match parameters.method {
            Method::Ablation => 0.0,
            Method::Reinforced => 0.25,
        });
        check(&parameters, factor)?;
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut of_layer = BTreeMap::new();
        for (index, module) in modules.iter().enumerate() {
            let next = parts.len();
            let part = match (parameters.by, module.layer) {
                (By::Layer, Some(layer)) => *of_layer.entry(layer).or_insert(next),
                _ => next,
            };
            if part == next {
                parts.push(Vec::new());
            }
            parts[part].push(index);
        }
        let suppressed = parameters.suppressed.resolve(parts.len());
        Ok(TrialScorer {
            suppressed: match parameters.method {
                Method::Ablation => 1,
                Method::Reinforced => {
                    suppressed.map_err(|error| format!("parameter `suppressed`: {error}"))?
                }
            },
            state: State {
                values: match parameters.method {
                    Method::Ablation => vec![None; parts.len()],
                    Method::Reinforced => vec![Some(0.0); parts.len()],
                },
                updated: None,
            },
            factor,
            parts,
            modules: modules.len(),
            parameters,
        })
    }
}

fn check(parameters: &Parameters, factor: f32) -> Result<()> {
    let Parameters {
        held_back,
        examples,
        candidates,
        passes,
        rate,
        interval,
        ..
    } = *parameters;
    if !(factor.is_finite() && factor >= 0.0) || factor == 1.0 {
        return Err(format!(
            "parameter `factor` is {factor}, but must be at least 0 and not 1, which suppresses nothing"
        )
        .into());
    }
    for (name, value, least) in [
        ("held_back", held_back, 1),
        ("candidates", candidates, 2),
        ("passes", passes, 1),
        ("interval", interval, 1),
    ] {
        if value < least {
            return Err(
                format!("parameter `{name}` is {value}, but must be at least {least}").into(),
            );
        }
    }
    if candidates > 1000 {
        return Err(
            format!("parameter `candidates` is {candidates}, but must be at most 1000").into(),
        );
    }
    if examples > held_back {
        return Err(format!(
            "parameter `examples` is {examples}, more than the {held_back} that `held_back` holds back"
        )
        .into());
    }
    if !(rate > 0.0 && rate.is_finite()) {
        return Err(format!("parameter `rate`: found {rate}, expected above 0").into());
    }
    Ok(())
}

/// `1 / (1 + e^−x)`.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// What a draw of this plugin's adds to a reallocation's seed, with which the allocator draws as well.
const SALT: u64 = 0x7472_6961_6c5f_6973;

impl TrialScorer {
    /// The sets of parts to suppress at a reallocation: each part by itself, or different sets drawn by σ(I).
    fn sets(&self, reallocation: u64, seed: u64) -> Vec<Vec<usize>> {
        match self.parameters.method {
            Method::Ablation => {
                let parts = self.parts.len() as u64;
                let passes = self.parameters.passes.min(parts);
                let first = reallocation % parts * passes % parts;
                let turn = (first..first + passes).map(|part| vec![(part % parts) as usize]);
                turn.collect()
            }
            Method::Reinforced => self.candidates(seed),
        }
    }

    /// IST's: different sets drawn by σ(I).
    fn candidates(&self, seed: u64) -> Vec<Vec<usize>> {
        let weights: Vec<f64> = self.values().map(sigmoid).collect();
        let mut random = Random::new(seed ^ SALT);
        let candidates = self.parameters.candidates as usize;
        let mut sets: Vec<Vec<usize>> = Vec::new();
        for _ in 0..100 * candidates {
            if sets.len() == candidates {
                break;
            }
            let mut set = draw_without_replacement(&weights, self.suppressed, &mut random);
            set.sort_unstable();
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        sets
    }

    /// The value of each part; of one without, the mean of the others.
    fn values(&self) -> impl Iterator<Item = f64> {
        let there: Vec<f64> = self.state.values.iter().copied().flatten().collect();
        let mean = there.iter().map(|value| value / there.len() as f64).sum();
        let values = self.state.values.iter();
        values.map(move |value| value.unwrap_or(mean))
    }

    fn trial(&self, set: &[usize]) -> Trial {
        let mut factors = vec![1.0; self.modules];
        for module in set.iter().flat_map(|part| &self.parts[*part]) {
            factors[*module] = self.factor;
        }
        Trial::scaled(factors)
    }

    fn due(&self, step: u64) -> bool {
        let interval = self.parameters.interval;
        let last = self.state.updated.unwrap_or(0);
        self.parameters.method == Method::Ablation || step >= last.saturating_add(interval)
    }

    /// IST's update by the losses with each of the sets suppressed.
    fn reinforce(&mut self, sets: &[Vec<usize>], losses: &[f64]) {
        let rewards: Vec<f64> = losses
            .iter()
            .map(|loss| (-loss).exp().min(f64::MAX))
            .collect();
        let mean = rewards
            .iter()
            .map(|reward| reward / rewards.len() as f64)
            .sum::<f64>();
        let before: Vec<f64> = self.values().collect();
        for (set, reward) in sets.iter().zip(rewards) {
            for &part in set {
                // p (1 − p), which is above 0 as long as both are numbers.
                let slope = sigmoid(before[part]) * sigmoid(-before[part]);
                let change = self.parameters.rate * (reward - mean) * slope;
                let value = &mut self.state.values[part];
                *value = value.map(|value| (value + change).clamp(-500.0, 500.0));
            }
        }
    }

    /// A value of each part over its modules.
    fn spread(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut spread = vec![0.0; self.modules];
        for (part, value) in self.parts.iter().zip(values) {
            for module in part {
                spread[*module] = value / part.len() as f64;
            }
        }
        spread
    }
}

impl Scorer for TrialScorer {
    fn needs(&self) -> Needs {
        Needs::default().and_held_back(self.parameters.held_back)
    }

    fn observe(&mut self, _: &Observation) -> Result<()> {
        Ok(())
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        if !self.due(request.step) {
            return Ok(Trials::default());
        }
        let sets = self.sets(request.reallocation, request.seed);
        let trials = sets.iter().map(|set| self.trial(set)).collect();
        Ok(Trials::new(self.parameters.examples, trials))
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        let trials = request.trials.as_ref().filter(|_| self.due(request.step));
        // The same that the trials were of: neither the seed nor what they are drawn by has changed since.
        let sets = trials.map_or_else(Vec::new, |_| self.sets(request.reallocation, request.seed));
        let losses = trials.map_or(&[][..], |trials| &trials.losses);
        if losses.len() != sets.len() || losses.iter().any(|loss| !loss.is_finite()) {
            return Err(format!(
                "the trials gave the losses {losses:?}, expected {} that are finite",
                sets.len()
            )
            .into());
        }
        match (self.parameters.method, trials) {
            (Method::Ablation, None) => {
                return Err(
                    "it was asked for scores without the trials that they are made of".into(),
                );
            }
            (Method::Ablation, Some(trials)) => {
                for (set, loss) in sets.iter().zip(losses) {
                    self.state.values[set[0]] = Some(loss - trials.baseline);
                }
            }
            (Method::Reinforced, None) => {}
            (Method::Reinforced, Some(_)) => {
                self.reinforce(&sets, losses);
                self.state.updated = Some(request.step);
            }
        }
        let score = |value: f64| match (self.parameters.method, self.parameters.negative) {
            (Method::Reinforced, _) => sigmoid(-value),
            (Method::Ablation, Negative::Zero) => value.max(0.0),
            (Method::Ablation, Negative::Size) => value.abs(),
        };
        Ok(self.spread(self.values().map(score)))
    }

    fn numbers(&self) -> Result<Numbers> {
        let (name, values) = match self.parameters.method {
            Method::Ablation if self.state.values.iter().all(Option::is_none) => {
                return Ok(Numbers::new());
            }
            Method::Ablation => ("increase", self.spread(self.values())),
            Method::Reinforced => {
                let mut values = vec![0.0; self.modules];
                for (part, value) in self.parts.iter().zip(self.values()) {
                    part.iter().for_each(|module| values[*module] = value);
                }
                ("suppressible", values)
            }
        };
        Ok(Numbers::from([(name.to_owned(), values)]))
    }

    fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.state)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: State = load_state(state)?;
        let (saved, own) = (state.values.len(), self.parts.len());
        if self.parameters.method == Method::Reinforced && state.values.contains(&None) {
            return Err("the saved state is of another method".into());
        }
        if saved != own {
            return Err(format!(
                "the saved state is of {saved} modules or layers, but there are {own}"
            )
            .into());
        }
        self.state = state;
        Ok(())
    }
}

export_plugin!(scorer TrialScorer);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::testing::{Distribution, Tally};
    use dynalora_plugin_api::{TrialLosses, conformance, testing};

    fn asked(step: u64, seed: u64) -> TrialRequest {
        let mut request = TrialRequest::default();
        (request.step, request.seed) = (step, seed);
        request
    }

    /// One reallocation of so many modules: what is tried, and the scores where each trial has the loss that `loss`
    /// gives it and the loss without any is 1.
    fn reallocate(
        scorer: &mut impl Scorer,
        modules: usize,
        (step, seed): (u64, u64),
        loss: impl Fn(&[f32]) -> f64,
    ) -> (Vec<Vec<f32>>, Vec<f64>) {
        let trials = scorer.trials(&asked(step, seed)).unwrap();
        let tried: Vec<Vec<f32>> = trials
            .trials
            .into_iter()
            .map(|trial| trial.factors)
            .collect();
        let mut request = testing::score_request(modules);
        (request.step, request.seed) = (step, seed);
        request.trials = (!tried.is_empty()).then(|| {
            TrialLosses::new(16, 1.0, tried.iter().map(|factors| loss(factors)).collect())
        });
        let scores = scorer.scores(&request).unwrap();
        (tried, scores)
    }

    #[test]
    fn ablation_is_by_how_much_the_loss_rises_without_each() {
        let weights = [0.5, -0.25, 0.0, 2.0];
        let loss = |factors: &[f32]| {
            let off = factors
                .iter()
                .zip(weights)
                .map(|(factor, weight)| f64::from(1.0 - factor) * weight);
            1.0 + off.sum::<f64>()
        };
        let run = |parameters: &str| {
            let mut scorer = testing::scorer::<TrialScorer>(parameters, 4).unwrap();
            let (tried, scores) = reallocate(&mut scorer, 4, (50, 1), loss);
            (tried, scores, scorer.numbers().unwrap())
        };
        let (tried, scores, numbers) = run("{}");
        assert_eq!(tried.len(), 4);
        assert_eq!(tried[1], [1.0, 0.0, 1.0, 1.0]);
        // What the loss falls without is not important.
        assert_eq!(scores, [0.5, 0.0, 0.0, 2.0]);
        assert_eq!(numbers["increase"], weights);
        assert_eq!(run(r#"{"negative": "size"}"#).1, [0.5, 0.25, 0.0, 2.0]);
        let (tried, scores, _) = run(r#"{"factor": 0.5}"#);
        assert_eq!((tried[0][0], scores[3]), (0.5, 1.0));
    }

    #[test]
    fn more_parts_than_passes_take_turns() {
        let mut scorer = testing::scorer::<TrialScorer>(r#"{"passes": 2}"#, 5).unwrap();
        let mut turns = Vec::new();
        for reallocation in 0..3 {
            let mut asked = asked(10, 1);
            asked.reallocation = reallocation;
            let trials = scorer.trials(&asked).unwrap().trials;
            let off = |trial: &Trial| {
                trial
                    .factors
                    .iter()
                    .position(|factor| *factor == 0.0)
                    .unwrap()
            };
            let tried: Vec<usize> = trials.iter().map(off).collect();
            let mut request = testing::score_request(5);
            request.reallocation = reallocation;
            let losses = tried.iter().map(|module| 1.0 + *module as f64).collect();
            request.trials = Some(TrialLosses::new(16, 1.0, losses));
            turns.push((tried, scorer.scores(&request).unwrap()));
        }
        // One not tried yet has the mean of the others.
        assert_eq!(turns[0], (vec![0, 1], vec![0.0, 1.0, 0.5, 0.5, 0.5]));
        assert_eq!(turns[1], (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 1.5]));
        assert_eq!(turns[2], (vec![4, 0], vec![0.0, 1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn a_layers_score_is_spread_over_its_modules() {
        let mut scorer = testing::scorer::<TrialScorer>(r#"{"by": "layer"}"#, 12).unwrap();
        let loss = |factors: &[f32]| 1.0 + f64::from(factors[6] - factors[0]);
        let (tried, scores) = reallocate(&mut scorer, 12, (50, 1), loss);
        assert_eq!(
            tried,
            [[[0.0; 6], [1.0; 6]].concat(), [[1.0; 6], [0.0; 6]].concat()]
        );
        assert_eq!(scores, [[1.0 / 6.0; 6], [0.0; 6]].concat());
    }

    const IST: &str = r#"{"method": "reinforced", "by": "layer", "held_back": 16}"#;

    #[test]
    fn reinforced_is_ists_update() {
        // By hand, from I = 0: two sets of losses 0 and ln 2 have the rewards 1 and 1/2, ±1/4 about their mean, and the
        // update is 10 · ±1/4 · 1/4 = ±5/8.
        let parameters = r#"{"method": "reinforced", "candidates": 2, "suppressed": 1}"#;
        let mut scorer = testing::scorer::<TrialScorer>(parameters, 3).unwrap();
        let loss = |factors: &[f32]| if factors[1] < 1.0 { 0.0 } else { 2_f64.ln() };
        // A seed whose two sets are module 1 alone and another.
        let seed = (0..100).find(|seed| {
            let tried = scorer.trials(&asked(10, *seed)).unwrap().trials;
            tried.iter().any(|trial| trial.factors[1] == 0.25)
        });
        let seed = seed.unwrap();
        let (tried, scores) = reallocate(&mut scorer, 3, (10, seed), loss);
        let other =
            (0..3).find(|module| *module != 1 && tried.iter().any(|set| set[*module] < 1.0));
        let other = other.unwrap();
        let values = scorer.numbers().unwrap()["suppressible"].clone();
        let mut expected = [0.0; 3];
        (expected[1], expected[other]) = (0.625, -0.625);
        for module in 0..3 {
            assert!(
                (values[module] - expected[module]).abs() < 1e-12,
                "{values:?}"
            );
            // 1 / (1 + e^0.625) = 0.34864514…
            let score = 1.0 / (1.0 + f64::exp(expected[module]));
            assert!((scores[module] - score).abs() < 1e-12, "{scores:?}");
        }
        assert!((scores[1] - 0.348_645_135).abs() < 1e-9);
    }

    #[test]
    fn what_is_missed_comes_to_be_drawn_more() {
        // The loss rises with every module of layer 3 suppressed, and falls a little with those of layer 0.
        let mut scorer = testing::scorer::<TrialScorer>(IST, 24).unwrap();
        let loss = |factors: &[f32]| {
            1.0 + f64::from(1.0 - factors[18]) - 0.2 * f64::from(1.0 - factors[0])
        };
        let mut scores = Vec::new();
        for step in 1..=400 {
            let (tried, now) = reallocate(&mut scorer, 24, (step, step), loss);
            // Every ten steps, three different sets of two layers of four.
            assert_eq!(tried.len(), if step % 10 == 0 { 3 } else { 0 });
            for set in &tried {
                assert_eq!(set.iter().filter(|factor| **factor == 0.25).count(), 12);
            }
            scores = now;
        }
        let layer = |layer: usize| scores[6 * layer..6 * layer + 6].iter().sum::<f64>();
        assert!(
            layer(3) > 0.9 && layer(0) < layer(1) && layer(1) < layer(3),
            "{scores:?}"
        );
    }

    #[test]
    fn sets_are_drawn_by_how_little_their_parts_are_missed() {
        let parameters = r#"{"method": "reinforced", "candidates": 2, "suppressed": 2}"#;
        let state = br#"{"values":[2.0,0.0,-1.0,0.5],"updated":5}"#;
        let mut scorer = testing::scorer::<TrialScorer>(parameters, 4).unwrap();
        scorer.load(state).unwrap();
        let mut first = Tally::new();
        for seed in 0..20_000 {
            let trials = scorer.trials(&asked(15, seed)).unwrap().trials;
            let set = trials[0]
                .factors
                .iter()
                .map(|factor| *factor < 1.0)
                .collect();
            *first.entry(set).or_default() += 1;
        }
        let weights = [2.0, 0.0, -1.0, 0.5].map(sigmoid);
        Distribution::successive(&weights, 2)
            .test(&first)
            .assert_fits();
        Distribution::successive(&[1.0; 4], 2)
            .test(&first)
            .assert_differs();
    }

    #[test]
    fn fewer_sets_than_asked_for_are_taken_as_they_are() {
        let parameters = r#"{"method": "reinforced", "candidates": 9, "suppressed": 1}"#;
        let mut scorer = testing::scorer::<TrialScorer>(parameters, 3).unwrap();
        assert_eq!(scorer.trials(&asked(10, 1)).unwrap().trials.len(), 3);
        // All of them at once are one set, which has the mean's reward: nothing changes.
        let parameters = r#"{"method": "reinforced", "suppressed": "100%"}"#;
        let mut scorer = testing::scorer::<TrialScorer>(parameters, 3).unwrap();
        let (tried, scores) = reallocate(&mut scorer, 3, (10, 1), |_| 7.0);
        assert_eq!((tried.len(), scores), (1, vec![0.5; 3]));
    }

    #[test]
    fn huge_losses_and_rates_leave_scores_that_are_numbers() {
        let parameters = r#"{"method": "reinforced", "rate": 1e300}"#;
        let mut scorer = testing::scorer::<TrialScorer>(parameters, 6).unwrap();
        for step in 1..10 {
            let loss =
                |factors: &[f32]| [1e300, 0.0][usize::from(factors[step as usize % 6] < 1.0)];
            let (_, scores) = reallocate(&mut scorer, 6, (10 * step, step), loss);
            assert!(
                scores.iter().all(|score| score.is_finite() && *score > 0.0),
                "{scores:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_tried_is_refused_by_name() {
        for (parameters, word) in [
            (r#"{"factor": 1.0}"#, "`factor`"),
            (r#"{"factor": -0.5}"#, "`factor`"),
            (r#"{"examples": 65}"#, "`examples`"),
            (r#"{"held_back": 0}"#, "`held_back`"),
            (r#"{"candidates": 1}"#, "`candidates`"),
            (r#"{"rate": 0.0}"#, "`rate`"),
            (
                r#"{"method": "reinforced", "suppressed": 7}"#,
                "`suppressed`",
            ),
        ] {
            let error = testing::scorer::<TrialScorer>(parameters, 6)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        let needs = testing::needs::<TrialScorer>(IST).unwrap();
        assert_eq!((needs.held_back, needs.observes()), (16, false));
    }

    #[test]
    fn conforms() {
        conformance::scorer::<TrialScorer>().assert();
    }
}
