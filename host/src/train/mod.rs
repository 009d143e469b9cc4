//! Training: the loop, and what it is made of.

mod checkpoint;
mod constant;
pub mod cost;
pub mod eva;
pub mod evaluate;
mod fault;
pub mod frozen;
mod given;
mod inputs;
mod machine;
pub mod optimizer;
mod order;
pub mod prefix;
mod prepare;
mod progress;
pub mod ranks;
mod readout;
mod recompute;
mod record;
mod reduce;
mod save;
mod scale;
mod stall;
pub mod step;
mod stop;
pub mod trainee;
mod trial;

use std::time::Instant;

use dynalora_plugin_api::{Metric, ModuleInfo, Moment, Observation, Sizes};

pub use given::Given;
pub use machine::{memory, peak_memory};
pub use prepare::{Prepared, Rest, check, costs, longest_step};
pub use progress::{Display, Verbosity, say};

use crate::adapter::{Adapters, Config, LinearInfo, mixed};
use crate::allocation::{Controller, Measuring};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::Model;
use crate::recipe::{Every, HeadBias, InitLoraWeights, Precision, Recipe};
use crate::run::{AllocationRecord, Checkpoint, SignalRecord, Summary, Writer};
use checkpoint::Progress;
use constant::Constant;
use cost::{Costs, HeadKind};
use optimizer::{Optimizer, OptimizerConfig};
use order::Steps;
use prefix::PrefixCache;
use ranks::Ranks;
use record::Made;
use scale::LossScale;
use step::{Prefix, StepPlan, StepResult};
use stop::Signal as Asked;
pub use stop::{Signal, Stop};
use trainee::Trainee;

/// Trains what `prepared` describes into the run that `writer` holds, from `from` if it was interrupted,
/// and returns the closing account. The adapter is exported at the end, of the best checkpoint where an
/// evaluation picked one. All `ranks` do so together, of which the first has a writer that writes.
pub fn train<B: Kernels>(
    ranks: &Ranks,
    prepared: Prepared,
    writer: Writer,
    from: Option<Checkpoint>,
    device_name: &str,
    device: &B::Device,
    display: &mut Display,
) -> Result<Summary> {
    let stop = Stop::listen()?;
    let (recipe, rest) = (&prepared.recipe, &prepared.rest);
    let (controller, total) = (prepared.controller, prepared.total_steps);
    let mut training = Training::<B>::new(
        ranks, recipe, rest, controller, total, writer, device, display,
    )?;
    training.begin(from)?;
    let (per_epoch, done) = (training.steps_per_epoch, training.progress.step);
    let mut steps = Steps::new(&rest.data, recipe, per_epoch, total, done);
    loop {
        // First, for an interrupted run may owe the evaluation of its last step.
        let best = training.evaluate(&stop)?;
        let asked = ranks.asked(&stop);
        let due = training.checkpoint_due(asked)?;
        if best.is_some() || due {
            training.save(best)?;
        }
        if let Some(signal) = asked {
            return Err(training.interrupted(signal));
        }
        let Some(batches) = steps.next() else { break };
        let stepped = training.step(&batches);
        let (made, observed) = stepped.map_err(|error| training.rescued(error))?;
        let outcome = training.reallocate(observed);
        training.endure(outcome, Some(&made))?;
        training.record(&made)?;
    }
    training.display.end();
    let best = training.export_best()?;
    let summary = training.summary(best, device_name);
    training.writer.summary(&summary)?;
    Ok(summary)
}

/// What a step was measured by, and what came of it.
type Observed = (Measuring, Observation);

/// A run while it trains.
struct Training<'a, B: Kernels> {
    /// Who trains.
    ranks: &'a Ranks,
    recipe: &'a Recipe,
    rest: &'a Rest,
    /// All linear layers of the base model.
    linears: Vec<LinearInfo>,
    /// What its steps are counted by.
    costs: Costs,
    total_steps: u64,
    steps_per_epoch: u64,
    controller: Controller,
    /// What a model that learns nothing of its inputs comes to.
    constant: Option<Constant>,
    trainee: Trainee<B>,
    optimizer: Optimizer<B>,
    cache: Option<PrefixCache>,
    /// Everything of the run so far that is a number or a mask.
    progress: Progress,
    writer: Writer,
    display: &'a mut Display,
    device: &'a B::Device,
    /// When this sitting began, and how long those before it took.
    started: Instant,
    seconds_before: f64,
    /// The step of the last checkpoint, and when it was made.
    saved: (u64, Instant),
}

impl<'a, B: Kernels> Training<'a, B> {
    #[expect(clippy::too_many_arguments, reason = "a run is made of these")]
    fn new(
        ranks: &'a Ranks,
        recipe: &'a Recipe,
        rest: &'a Rest,
        mut controller: Controller,
        total_steps: u64,
        writer: Writer,
        device: &'a B::Device,
        display: &'a mut Display,
    ) -> Result<Self> {
        let modules = rest.modules.clone();
        let model = Model::<B>::load(&rest.pretrained, &modules, rest.data.outputs(), device)?;
        let config = optimizer_config(recipe, total_steps);
        let linears = rest.pretrained.linears();
        let adapter = Config::from(&recipe.adapter);
        let train = &recipe.train;
        let constant = Constant::of(&rest.data.train.expected(), rest.data.outputs());
        let answer = constant.as_ref().map(Constant::logits);
        let answer = answer.filter(|_| recipe.model.head_bias == HeadBias::Labels);
        let cache = || PrefixCache::new(train.cache_memory_mib << 20);
        let mut adapters = Adapters::new(
            adapter.clone(),
            modules.clone(),
            rest.configs.clone(),
            recipe.seed,
            device,
        );
        let mut head = None;
        if let Some(given) = &rest.given {
            adapters = given.adapters(adapters, device)?;
            head = given.head(&model.head, device)?;
        }
        rest.pretrained.put_on(&mut adapters, &model, device)?;
        let head = match head {
            Some(head) => head,
            None => model.head.initial(recipe.seed, answer.as_deref(), device),
        };
        let mut progress = Progress::start(controller.state()?);
        progress.loss_scale = (recipe.model.precision == Precision::F16).then(LossScale::default);
        Ok(Training {
            ranks,
            recipe,
            rest,
            costs: Costs::of(cost::Shape {
                config: &rest.pretrained.config,
                linears: &linears,
                modules: &modules,
                adapter: &adapter,
                head: HeadKind::of(rest.data.problem, rest.data.outputs()),
                checkpointing: recipe.train.gradient_checkpointing,
            }),
            linears,
            total_steps,
            steps_per_epoch: rest.data.steps_per_epoch(train, recipe.seed),
            progress,
            controller,
            constant,
            optimizer: Optimizer::new(config, modules.len())
                .with_embeddings(rest.configs.iter().map(Config::is_embedding).collect()),
            trainee: Trainee {
                model,
                adapters,
                head,
            },
            cache: train.cache_frozen_prefix.then(cache),
            writer,
            display,
            device,
            started: Instant::now(),
            seconds_before: 0.0,
            saved: (0, Instant::now()),
        })
    }

    /// Records the choice that the run starts with, or goes on from a checkpoint.
    fn begin(&mut self, from: Option<Checkpoint>) -> Result<()> {
        match from {
            Some(checkpoint) => {
                self.progress = checkpoint::resume(
                    self.writer.run(),
                    &checkpoint,
                    &mut self.trainee,
                    &mut self.optimizer,
                    self.total_steps,
                    self.device,
                )?;
                self.controller.restore(self.progress.allocation.clone())?;
                self.put_to_use();
                self.seconds_before = self.progress.seconds;
                self.saved.0 = self.progress.step;
                if self.progress.allocation.owed {
                    let outcome = self.choose();
                    self.endure(outcome, None)?;
                }
            }
            None => {
                match self.recipe.adapter.init_lora_weights {
                    Some(InitLoraWeights::Pissa(iterations)) => {
                        self.start_from_the_weights(iterations)?;
                    }
                    Some(InitLoraWeights::Eva) => self.start_from_the_inputs()?,
                    None => {}
                }
                self.warn_of_a_far_mean();
                let modules = self.rest.modules.iter();
                self.writer.allocation(&AllocationRecord {
                    eva: self.rest.eva.as_ref().map(|found| found.record.clone()),
                    ..AllocationRecord::initial(
                        modules.map(|module| module.path.clone()).collect(),
                        self.controller.active(),
                        &self.controller.ranks(),
                    )
                })?;
                if self.recipe.train.log_signals {
                    self.writer.signals(&SignalRecord::Modules {
                        step: 0,
                        total_steps: self.total_steps,
                        modules: self.rest.modules.clone(),
                        initial_ranks: self.controller.initial_ranks().map(<[u32]>::to_vec),
                        costs: self.controller.costs().cloned().map(Box::new),
                    })?;
                }
                self.measure_frozen()?;
                if let Some(passes) = self.controller.first_choice() {
                    self.calibrate(passes)?;
                    self.choose()?;
                }
            }
        }
        self.display.start(self.total_steps, self.progress.step);
        Ok(())
    }

    /// Lets the pairs start from what their modules read, which was found before.
    fn start_from_the_inputs(&mut self) -> Result<()> {
        let found = self.rest.eva.as_ref();
        let Some((vectors, sizes)) = found.and_then(|it| Some((it.vectors.as_ref()?, it.sizes)))
        else {
            return Err(Error::failure(
                "a run that begins has to find what its modules read",
            ));
        };
        let nothing = Sizes::default();
        self.progress.flops += self.costs.step(&[], sizes, false, 0, nothing);
        self.trainee.adapters.start_at(vectors, self.device);
        Ok(())
    }

    /// Lets the pairs start at the principal components of the frozen weights, or nearly there, by so many `iterations`.
    fn start_from_the_weights(&mut self, iterations: Option<usize>) -> Result<()> {
        let began = Instant::now();
        let (pretrained, modules) = (&self.rest.pretrained, &self.rest.modules);
        let weight = |module: &ModuleInfo| {
            let weight = pretrained.frozen_weight::<burn_flex::Flex>(module, &Default::default());
            trainee::read(weight?)
        };
        let adapters = &mut self.trainee.adapters;
        adapters.start_from(weight, iterations, self.recipe.seed, self.device)?;
        tracing::info!(
            "the pairs of {} modules start at the principal components of their weights, found in {:.1} s",
            modules.len(),
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Measures what is measured once, before anything runs, if a plugin needs it.
    fn measure_frozen(&mut self) -> Result<()> {
        let measuring = self.controller.at_the_start();
        let wanted = &measuring.wanted;
        if wanted.is_nothing() {
            return Ok(());
        }
        let (pretrained, modules) = (&self.rest.pretrained, &self.rest.modules);
        let found = frozen::measure::<B>(pretrained, modules, wanted, self.device)?;
        let mut observation = Observation::default();
        observation.moment = Moment::Start;
        observation.total_steps = self.total_steps;
        observation.learning_rate = self.optimizer.rate(0);
        observation.active = self.controller.active().to_vec();
        (observation.signals, observation.raw) = found;
        self.log_signals(&measuring, &observation)?;
        self.controller.observe(&measuring, &observation)
    }

    /// Measures every module in so many passes over the first steps' batches, and updates nothing.
    fn calibrate(&mut self, passes: u64) -> Result<()> {
        let measuring = self.controller.before_the_first_step();
        let (data, total) = (&self.rest.data, self.total_steps.max(passes));
        let steps = Steps::new(data, self.recipe, self.steps_per_epoch, total, 0);
        for (pass, batches) in (0..passes).zip(steps) {
            let mut plan = StepPlan {
                step: 0,
                active: self.controller.active(),
                components: self.controller.components(),
                details: self.controller.details(),
                rates: self.optimizer.rates(0),
                embedding_rate: self.optimizer.embedding_rate(0),
                probing: false,
                wanted: &measuring.wanted,
                // No step has it: those count up.
                seed: dropout_seed(self.recipe.seed, u64::MAX - pass),
                checkpointing: self.recipe.train.gradient_checkpointing,
                loss_scale: self.progress.loss_scale(),
            };
            let tracked = plan.tracked();
            let run = |plan: &StepPlan<'_>| {
                let (trainee, ranks) = (&self.trainee, self.ranks);
                step::run_share(ranks, trainee, &batches, plan, None, None, self.device)
            };
            let mut result = run(&plan)?;
            while let Some(scale) = &mut self.progress.loss_scale
                && scale.lowered_by(&result)
            {
                plan.loss_scale = scale.scale;
                result = run(&plan)?;
            }
            self.progress.flops += self.flops(&batches, &tracked, &measuring.wanted, 0)?;
            result.observation.moment = Moment::Calibration;
            result.observation.total_steps = self.total_steps;
            self.log_signals(&measuring, &result.observation)?;
            self.controller.observe(&measuring, &result.observation)?;
        }
        Ok(())
    }

    /// Says where the first steps would be spent on learning the labels' mean, with the encoder as its means.
    fn warn_of_a_far_mean(&self) {
        let fresh = self.trainee.model.head.last_is_fresh();
        let biased = self.trainee.model.head.has_bias();
        let zero = fresh && !(biased && self.recipe.model.head_bias == HeadBias::Labels);
        let Some(mean) = self.constant.as_ref().filter(|_| zero) else {
            return;
        };
        if let Some(mean) = mean.far_mean() {
            let (start, way) = match biased {
                true => (
                    "model.head_bias = \"zero\" starts the head",
                    "\"labels\" starts there",
                ),
                false => (
                    "the head starts, which has no bias in this family",
                    "Take the mean out of the labels",
                ),
            };
            tracing::warn!(
                "the labels' mean, {mean:.4}, is far from 0, where {start}: the first steps learn it by moving the base \
                 model, from which some runs do not recover. {way}"
            );
        }
    }

    /// Forward, backward and update: what the step was, and what plugins are told of it, unless its update was
    /// left out.
    fn step(&mut self, batches: &[Batch]) -> Result<(Made, Option<Observed>)> {
        let number = self.progress.step + 1;
        let measuring = self.controller.upcoming(number);
        let (probing, outputs) = (measuring.probing, measuring.wanted.outputs());
        let depth = match self.cache {
            Some(_) => self.skippable(probing, outputs),
            None => 0,
        };
        let plan = StepPlan {
            step: number,
            active: self.controller.active(),
            components: self.controller.components(),
            details: self.controller.details(),
            rates: self.optimizer.rates(self.progress.step),
            embedding_rate: self.optimizer.embedding_rate(self.progress.step),
            probing,
            wanted: &measuring.wanted,
            seed: dropout_seed(self.recipe.seed, number),
            checkpointing: self.recipe.train.gradient_checkpointing,
            loss_scale: self.progress.loss_scale(),
        };
        let cache = self.cache.as_mut().filter(|_| depth > 0);
        let prefix = cache.map(|cache| Prefix { cache, depth });
        let optimizer = Some(&self.optimizer);
        let result = step::run_share(
            self.ranks,
            &self.trainee,
            batches,
            &plan,
            prefix,
            optimizer,
            self.device,
        )?;

        let (tracked, seed) = (plan.tracked(), plan.seed);
        let skipped = self.skips(batches, seed, &result)?;
        let flops = self.flops(batches, &tracked, &measuring.wanted, depth)?;
        let made = self.made(batches, &result, flops, skipped);
        let observation = match skipped {
            true => None,
            false => {
                let mut observation = self.update(result);
                observation.total_steps = self.total_steps;
                observation.metric = self.latest_metric();
                Some((measuring, observation))
            }
        };
        if let (Some(turn), Some(constant)) = (self.count(&made), &self.constant) {
            let advice = stall::advice(self.recipe, self.rest.pretrained.frozen_pooler());
            self.display.turned(&turn, constant, &advice);
        }
        self.progress.evaluation_owed = self.is_due(self.recipe.evaluation.every);
        Ok((made, observation))
    }

    /// The main metric of the latest evaluation.
    fn latest_metric(&self) -> Option<Metric> {
        let (step, name) = self.progress.evaluated.as_ref()?;
        let value = self.progress.metrics.get(name)?;
        Some(Metric::new(*step, name.as_str(), *value))
    }

    /// Updates what trains by a step's gradients; what plugins are told of it comes back.
    fn update(&mut self, result: StepResult<B>) -> Observation {
        let step = self.progress.step;
        let clip = clip_coefficient(result.gradient_norm, self.recipe.train.max_grad_norm);
        for (module, gradients) in result.gradients.into_iter().enumerate() {
            if let (true, Some(gradients)) = (self.controller.active()[module], gradients) {
                let components = self.controller.components();
                let remaining = components.map(|all| all[module].as_slice());
                let pair = self.trainee.adapters.pair_mut(module);
                let factors = self.controller.details().rate(module);
                self.optimizer
                    .update_module(module, step, factors, remaining, pair, gradients, clip);
            }
        }
        let vectors = self.trainee.model.head.vectors();
        let head = &mut self.trainee.head;
        self.optimizer
            .update_head(step, head, &vectors, result.head_gradients, clip);
        result.observation
    }

    /// Tells the plugins of a step, lets them choose anew where that is due, and puts their choice into force.
    fn reallocate(&mut self, observed: Option<Observed>) -> Result<()> {
        match observed {
            Some((measuring, observation)) => {
                self.log_signals(&measuring, &observation)?;
                self.controller.after_step(&measuring, &observation)?;
            }
            None => self.controller.after_skipped_step(),
        }
        match self.controller.is_due() {
            true => self.choose(),
            false => Ok(()),
        }
    }

    /// Records what the plugins are about to be told, where the recipe asks for that. A step of which nobody is told
    /// has no record.
    fn log_signals(&mut self, measuring: &Measuring, observation: &Observation) -> Result<()> {
        match self.recipe.train.log_signals && measuring.is_told() {
            true => self
                .writer
                .signals(&SignalRecord::Observed(observation.into())),
            false => Ok(()),
        }
    }

    /// Makes the trials that the plugins want, asks them, and puts their choice into force.
    fn choose(&mut self) -> Result<()> {
        let asked = self.controller.trials()?;
        let made = self.make_trials(&asked)?;
        let reallocation = self.controller.reallocate(&made)?;
        for module in &reallocation.deactivated {
            self.optimizer.deactivated(*module);
        }
        self.put_to_use();
        let frozen = self.controller.details().frozen;
        let components = self.controller.components().into_iter().flatten();
        let details = self.controller.details();
        for (module, remaining) in components.enumerate() {
            // A pair that is not in use stays as it was.
            if details.owner(module) != module {
                continue;
            }
            if frozen {
                self.optimizer.frozen(module, remaining);
                continue;
            }
            self.trainee.adapters.prune(module, remaining);
            self.optimizer.pruned(module, remaining);
        }
        self.writer
            .allocation(&AllocationRecord::from(&reallocation))?;
        self.display
            .reallocated(&reallocation, self.rest.modules.len());
        Ok(())
    }

    /// Lets the adapters be scaled and shared as the controller says.
    fn put_to_use(&mut self) {
        let details = self.controller.details();
        let adapters = &mut self.trainee.adapters;
        adapters.put_to_use(&details.scales, &details.shared);
        for module in (0..adapters.modules.len()).filter(|it| details.owner(*it) != *it) {
            // Its own pair no longer trains.
            self.optimizer.deactivated(module);
        }
    }

    /// How many of the first layers need not be run, because nothing in them trains or is measured.
    fn skippable(&self, probing: bool, outputs: bool) -> usize {
        let layers = self.rest.pretrained.config.layers;
        let below = |module: usize| self.trainee.adapters.layers_below(module, layers);
        let (active, modules) = (self.controller.active(), 0..self.rest.modules.len());
        let lowest = modules.clone().filter(|module| active[*module]).map(below);
        let depth = lowest.min().unwrap_or(layers);
        match probing || (outputs && modules.clone().any(|module| below(module) < depth)) {
            true => 0,
            false => depth,
        }
    }

    /// Whether something recurring is due after the step just finished. After the last step everything is.
    fn is_due(&self, every: Every) -> bool {
        let step = self.progress.step;
        let recurs = match every {
            Every::Epoch => step.is_multiple_of(self.steps_per_epoch),
            Every::Steps(steps) => step.is_multiple_of(steps),
            Every::Never => false,
        };
        recurs || step == self.total_steps
    }

    /// Epochs finished.
    fn epoch(&self) -> f64 {
        self.progress.step as f64 / self.steps_per_epoch as f64
    }

    /// Seconds of training over all sittings.
    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// What becomes of an error in a step that was not finished: where other ranks can no longer be waited for, what was
    /// reached before it is saved.
    fn rescued(&mut self, error: Error) -> Error {
        if !(self.ranks.leads() && self.ranks.is_cut_off()) {
            return error;
        }
        if self.saved.0 < self.progress.step
            && let Err(error) = self.save(None)
        {
            return error;
        }
        match self.ranks.gave_up() {
            Some(signal) => self.interrupted(signal).and_help(
                "it waited for other ranks in vain, of which one has ended or hangs: what that said is above, if it said \
                 anything",
            ),
            None => error.and_help(format!(
                "step {}, which was the last whole one, is saved",
                self.progress.step
            )),
        }
    }

    /// What is said of a run that was asked to stop, once it is saved.
    fn interrupted(&mut self, signal: Asked) -> Error {
        self.display.end();
        let step = self.progress.step;
        let said = format!(
            "stopped by {signal} after step {step} of {}",
            self.total_steps
        );
        if step == 0 {
            return Error::interrupted(signal.0, said);
        }
        let folder = self.writer.run().dir().display();
        Error::interrupted(signal.0, format!("{said}, which is saved in {folder}"))
            .help("go on with the same command and --resume")
    }
}

fn optimizer_config(recipe: &Recipe, total_steps: u64) -> OptimizerConfig {
    let train = &recipe.train;
    OptimizerConfig {
        rate: train.learning_rate,
        loraplus_lr_ratio: train.loraplus_lr_ratio(),
        loraplus_lr_embedding: train.loraplus_lr_embedding(),
        head_rate: train.head_rate(),
        beta1: train.beta1,
        beta2: train.beta2,
        epsilon: train.epsilon,
        weight_decay: train.weight_decay,
        schedule: train.lr_schedule,
        warmup_steps: train.warmup.steps(total_steps),
        total_steps,
        state: recipe.allocation.optimizer_state,
    }
}

/// The seed of a step's dropout: a function of the run's seed and the step, so that a resumed run drops
/// the same elements.
fn dropout_seed(seed: u64, step: u64) -> u64 {
    mixed(mixed(seed, 0x6472_6f70_6f75_7400), step)
}

/// What gradients are multiplied by so that their norm is at most `max` (0: never clipped), as PyTorch's
/// `clip_grad_norm_` does.
fn clip_coefficient(norm: f64, max: f64) -> f32 {
    if max <= 0.0 {
        1.0
    } else {
        (max / (norm + 1e-6)).min(1.0) as f32
    }
}
