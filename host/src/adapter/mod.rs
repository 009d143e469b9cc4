//! What hangs on a linear layer, or on a table of embeddings: the adapters of all adapted modules, LoRA's or VeRA's.

mod adapted;
pub mod components;
mod dora;
mod eva;
mod lora;
mod pass;
mod pissa;
mod sensed;
mod side;
mod targets;
mod tensors;
mod vera;

use std::sync::OnceLock;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use dynalora_plugin_api::ModuleInfo;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::recipe::{AdapterBias, AdapterConfig, AdapterKind};

pub use adapted::Adapted;
pub use dora::Weight;
pub use eva::{Components, distribute};
pub use lora::LoraConfig;
pub use pass::{Counts, Looked, Observe, Observed, Part, Pass, Site, Uploaded, mixed};
pub use sensed::{Sense, Sensed};
use targets::select;
pub use tensors::Tensors;
pub use vera::{Projections, VeraConfig};

/// The method of a run's adapters and their sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A pair of matrices of its own for each module.
    Lora(LoraConfig),
    /// A pair of vectors for each module, around two matrices that all share.
    Vera(VeraConfig),
}

impl From<&AdapterConfig> for Config {
    /// As all modules have them that no pattern names.
    fn from(recipe: &AdapterConfig) -> Self {
        Config::of(recipe, recipe.rank(), recipe.alpha(), (true, false))
    }
}

impl Config {
    /// The method of a module that starts with this rank and α, whose layer `has_bias` or has none, and may be a table of
    /// embeddings.
    fn of(
        recipe: &AdapterConfig,
        rank: usize,
        alpha: f64,
        (has_bias, is_embedding): (bool, bool),
    ) -> Self {
        let dropout = recipe.dropout;
        match recipe.kind {
            AdapterKind::Lora => {
                let most = recipe.r_max.unwrap_or(rank);
                Config::Lora(LoraConfig {
                    rank: most as u32,
                    // The scale goes by the rank that modules start with, however wide they can grow.
                    alpha: match most == rank && recipe.use_rslora != Some(true) {
                        true => alpha,
                        false => recipe.scale(alpha, rank) * most as f64,
                    },
                    dropout,
                    // EVA's is LoRA like any other.
                    start: recipe.init_lora_weights.filter(|start| start.is_pissa()),
                    use_dora: recipe.use_dora(),
                    trains_bias: has_bias && recipe.bias() == AdapterBias::LoraOnly,
                    is_embedding,
                })
            }
            AdapterKind::Vera => Config::Vera(VeraConfig {
                rank: rank as u32,
                d_initial: recipe.d_initial(),
                dropout,
                projection_prng_key: recipe.projection_prng_key(),
            }),
        }
    }

    /// Inner width of the side path.
    pub fn rank(&self) -> u32 {
        match self {
            Config::Lora(lora) => lora.rank,
            Config::Vera(vera) => vera.rank,
        }
    }

    /// Dropout of the side path's input while training.
    pub fn dropout(&self) -> f32 {
        match self {
            Config::Lora(lora) => lora.dropout as f32,
            Config::Vera(vera) => vera.dropout as f32,
        }
    }

    /// The fixed factor of the side path: LoRA's `alpha / rank`; VeRA has none.
    pub fn scale(&self) -> f32 {
        match self {
            Config::Lora(lora) => lora.scale(),
            Config::Vera(_) => 1.0,
        }
    }

    /// How many pairs of its rank a module's side path is: of PiSSA two, the second of which takes away what the first
    /// started from.
    pub fn pairs(&self) -> u32 {
        match self {
            Config::Lora(lora) if lora.start.is_some() => 2,
            _ => 1,
        }
    }

    /// How often the frozen weight is multiplied: DoRA adds to what the layer makes of all of its input, and reads what
    /// dropout has left of it.
    pub fn products(&self) -> u64 {
        1 + u64::from(self.use_dora() && self.dropout() > 0.0)
    }

    /// Whether A, the side path's first matrix, has a gradient where a module is active.
    pub fn trains_a(&self) -> bool {
        matches!(self, Config::Lora(_))
    }

    /// Whether the sizes of the rows of a module's weight train: DoRA.
    pub fn use_dora(&self) -> bool {
        matches!(self, Config::Lora(lora) if lora.use_dora)
    }

    /// Whether the layer's bias trains.
    pub fn trains_bias(&self) -> bool {
        matches!(self, Config::Lora(lora) if lora.trains_bias)
    }

    /// Whether it stands beside a table of embeddings.
    pub fn is_embedding(&self) -> bool {
        matches!(self, Config::Lora(lora) if lora.is_embedding)
    }

    /// Which tensor of a pair is zero at the start, so that it adds nothing: LoRA's B, beside a table of embeddings its A.
    pub fn starts_at_zero(&self) -> usize {
        usize::from(!self.is_embedding())
    }

    /// What PEFT calls the tensors that a module trains.
    pub fn parts(&self) -> Tensors<&'static str> {
        Tensors {
            pair: match self {
                Config::Lora(lora) if lora.is_embedding => ["lora_embedding_A", "lora_embedding_B"],
                Config::Lora(_) => ["lora_A", "lora_B"],
                Config::Vera(_) => ["vera_lambda_d", "vera_lambda_b"],
            },
            magnitude: self.use_dora().then_some("lora_magnitude_vector"),
            bias: self.trains_bias().then_some("base_layer.bias"),
        }
    }

    /// Shapes of the tensors that a module trains.
    pub fn shapes(&self, module: &ModuleInfo) -> Tensors<[usize; 2]> {
        let [inputs, outputs, rank] = sizes(module);
        Tensors {
            pair: match self {
                Config::Lora(_) => [[rank, inputs], [outputs, rank]],
                Config::Vera(_) => [[rank, 1], [outputs, 1]],
            },
            magnitude: self.use_dora().then_some([outputs, 1]),
            bias: self.trains_bias().then_some([outputs, 1]),
        }
    }

    /// Values that are kept beside those of the modules themselves: VeRA's projections, one copy for each
    /// width there is, or where PiSSA's pairs started.
    pub fn frozen_values(&self, modules: &[ModuleInfo]) -> u64 {
        match self {
            Config::Lora(_) if self.pairs() == 2 => modules.iter().map(pair_values).sum(),
            Config::Lora(_) => 0,
            Config::Vera(vera) => vera.projected_widths(modules) * u64::from(vera.rank),
        }
    }
}

/// Inputs, outputs and rank of a module.
pub fn sizes(module: &ModuleInfo) -> [usize; 3] {
    [module.in_features, module.out_features, module.rank.into()].map(|size| size as usize)
}

/// Values that DoRA keeps of the rows of the modules' weights: what each norm is the sum of.
pub fn row_values(config: &Config, modules: &[ModuleInfo]) -> u64 {
    let outputs = modules.iter().map(|module| module.out_features);
    u64::from(config.use_dora()) * 4 * outputs.sum::<u64>()
}

/// Values of a pair of LoRA's at a module's full rank.
fn pair_values(module: &ModuleInfo) -> u64 {
    u64::from(module.rank) * (module.in_features + module.out_features)
}

/// Values that a module trains at this rank, up to its own: of a smaller one of LoRA's pair in proportion.
pub fn parameters_at(module: &ModuleInfo, rank: u32) -> u64 {
    let missing = u64::from(module.rank - rank.min(module.rank));
    module.parameters - missing * (module.in_features + module.out_features)
}

/// One linear layer of a base model, before anyone decides whether to adapt it; or a table of embeddings, which is one
/// over as many inputs as it has entries, of which a token has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Path in the base model, without the family's prefix: `encoder.layer.3.attention.self.query`.
    pub path: String,
    /// Index of its transformer layer; none outside the layers.
    pub layer: Option<u32>,
    /// Features in and out.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether it is a table of embeddings: `inputs` entries of `outputs` features.
    pub is_embedding: bool,
}

impl LinearInfo {
    /// The last part of the path.
    pub fn role(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// What a plugin is told of this layer once it carries an adapter.
    ///
    /// Forward: `2·in·out` for the frozen product and `2·r·(in + out)` for the side path. Backward of an
    /// active module: the same again for the input's gradient, and for its own `2·r·(in + out)`, of VeRA's
    /// vectors `2·r·out`. PiSSA's r is twice its rank here. DoRA's drop-out reads the frozen weight a second time. In a
    /// table of embeddings rows are looked up, so that only the products with B count.
    pub fn module(&self, config: &Config) -> ModuleInfo {
        let (inputs, outputs) = (self.inputs as u64, self.outputs as u64);
        let rank = u64::from(config.rank());
        let more = u64::from(config.use_dora()) + u64::from(config.trains_bias());
        let parameters = more * outputs
            + match config {
                Config::Lora(_) => rank * (inputs + outputs),
                Config::Vera(_) => rank + outputs,
            };
        let rank = u64::from(config.pairs()) * rank;
        let [forward, backward] = match config {
            _ if self.is_embedding => [1, 2].map(|products| products * 2 * rank * outputs),
            _ => {
                let pair = rank * (inputs + outputs);
                let own = match config {
                    Config::Lora(_) => 2 * pair,
                    Config::Vera(_) => 2 * rank * outputs,
                };
                let frozen = 2 * inputs * outputs * config.products();
                let forward = frozen + 2 * pair;
                [forward, forward + own]
            }
        };
        let mut info = ModuleInfo::default();
        info.path.clone_from(&self.path);
        info.layer = self.layer;
        info.role = self.role().to_owned();
        info.in_features = inputs;
        info.out_features = outputs;
        info.rank = config.rank();
        info.parameters = parameters;
        info.forward_flops = forward;
        info.backward_flops = backward;
        info
    }
}

/// What is frozen under a module, as far as more than its output is read.
#[derive(Clone, Debug)]
struct Under<B: Kernels> {
    weight: Weight<B>,
    /// The norms of its rows `‖W‖`, where DoRA's m starts, and its bias where that trains, each `[out, 1]`.
    starts: [Option<Tensor<B, 2>>; 2],
    /// The rows of `W + s·BA`, found when they are first asked for.
    rows: OnceLock<dora::Rows<B>>,
}

/// The values of every module's adapter, active or not.
#[derive(Clone, Debug)]
pub struct Adapters<B: Kernels> {
    /// Method and sizes, as all modules have them that have none of their own.
    pub config: Config,
    /// The modules in forward order, each with its rank.
    pub modules: Vec<ModuleInfo>,
    /// VeRA's frozen matrices.
    pub projections: Option<Projections<B>>,
    /// PiSSA: where each pair started, `[A₀, B₀]`.
    starts: Option<Vec<[Tensor<B, 2>; 2]>>,
    pairs: Vec<Tensors<Tensor<B, 2>>>,
    /// What DoRA and biases that train read of the layers under them: of each module, or nothing.
    layers: Vec<Under<B>>,
    /// How often each pair was given out to be written to, or came into another use.
    versions: Vec<u64>,
    /// Method and sizes of each module.
    own: Vec<Config>,
    /// A factor on each module's scale.
    scales: Vec<f64>,
    /// The module whose pair each module uses.
    shared: Vec<usize>,
}

impl<B: Kernels> Adapters<B> {
    /// Fresh adapters, as PEFT makes them; the adapted model starts as the pretrained one. Each module draws
    /// from a stream of its own, so that its start does not depend on which others are adapted. `own` has method and sizes
    /// of each.
    pub fn new(
        config: Config,
        modules: Vec<ModuleInfo>,
        own: Vec<Config>,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let pairs = modules
            .iter()
            .zip(&own)
            .map(|(module, own)| match own {
                Config::Lora(lora) if lora.is_embedding => {
                    lora::fresh_embedding(module, seed, device)
                }
                Config::Lora(_) => lora::fresh(module, seed, device),
                Config::Vera(vera) => vera.fresh(module, device),
            })
            .map(Tensors::new)
            .collect();
        let projections = match &config {
            Config::Lora(_) => None,
            Config::Vera(vera) => Some(Projections::draw(vera, &modules, device)),
        };
        let mut adapters = Adapters::of(config, modules, pairs, projections).with_own(own);
        if adapters.config.pairs() == 2 {
            // Until they are found, or read from a checkpoint.
            let pairs = adapters.pairs.iter().map(|module| module.pair.clone());
            adapters.starts = Some(pairs.collect());
        }
        adapters
    }

    /// Adapters with the values of these `pairs`, and what else trains, one for each of `modules`.
    pub fn of(
        config: Config,
        modules: Vec<ModuleInfo>,
        pairs: Vec<Tensors<Tensor<B, 2>>>,
        projections: Option<Projections<B>>,
    ) -> Self {
        Adapters {
            own: vec![config.clone(); modules.len()],
            config,
            projections,
            starts: None,
            layers: Vec::new(),
            versions: vec![0; modules.len()],
            scales: vec![1.0; modules.len()],
            shared: (0..modules.len()).collect(),
            modules,
            pairs,
        }
    }

    /// The same with the values of `other` adapters of the same method, modules and sizes.
    pub fn with_values_of(mut self, other: Self) -> Self {
        (self.pairs, self.projections) = (other.pairs, other.projections);
        self.versions.iter_mut().for_each(|version| *version += 1);
        self
    }

    /// The same, whose modules have these sizes of their own.
    pub fn with_own(mut self, configs: Vec<Config>) -> Self {
        self.own = configs;
        self
    }

    /// Puts them on what is `frozen` under each module, whose weights `[out, in]` `weight` gives row by row.
    /// Only what DoRA and biases that train need is read. What of theirs has no values yet starts at the layer's own.
    pub fn put_on(
        &mut self,
        frozen: &[Weight<B>],
        weight: impl Fn(&ModuleInfo) -> Result<Vec<f32>>,
        device: &B::Device,
    ) -> Result<()> {
        let more = |own: &Config| own.use_dora() || own.trains_bias();
        if !self.own.iter().any(more) {
            return Ok(());
        }
        let mut layers = Vec::new();
        for (index, (module, frozen)) in self.modules.iter().zip(frozen).enumerate() {
            let own = &self.own[index];
            let norms = own.use_dora().then(|| {
                let norms = dora::row_norms(&weight(module)?, sizes(module)[1], device);
                norms.map_err(|row| {
                    Error::user(format!(
                        "adapter.use_dora is true, but row {row} of the weight of {} is zero, and has no direction",
                        module.path
                    ))
                    .help("leave it out by adapter.exclude_modules")
                })
            });
            let bias = frozen.bias().filter(|_| own.trains_bias());
            let bias = bias.map(|bias| bias.reshape([sizes(module)[1], 1]));
            let starts = [norms.transpose()?, bias];
            let trained = &mut self.pairs[index];
            for (value, start) in [&mut trained.magnitude, &mut trained.bias]
                .into_iter()
                .zip(&starts)
            {
                if value.is_none() {
                    value.clone_from(start);
                }
            }
            layers.push(Under {
                weight: frozen.without_bias(),
                starts,
                rows: OnceLock::new(),
            });
        }
        self.layers = layers;
        Ok(())
    }

    /// Lets the pairs start at the principal components of the modules' weights `[out, in]`, which `weight` gives row by
    /// row; at nearly these, by so many `iterations`. What is drawn goes by `seed` and the modules' names.
    pub fn start_from(
        &mut self,
        weight: impl Fn(&ModuleInfo) -> Result<Vec<f32>> + Sync,
        iterations: Option<usize>,
        seed: u64,
        device: &B::Device,
    ) -> Result<()> {
        let modules = self.modules.par_iter().zip(&self.own);
        let found: Vec<[Vec<f32>; 2]> = modules
            .map(|(module, own)| {
                let [inputs, outputs, rank] = sizes(module);
                let (shape, drawn) = ([outputs, inputs], (seed, module.path.as_str()));
                pissa::principal(
                    &weight(module)?,
                    shape,
                    rank,
                    own.scale(),
                    iterations,
                    drawn,
                )
            })
            .collect::<Result<_>>()?;
        let starts = self.modules.iter().zip(found).map(|(module, found)| {
            let shapes = self.config.shapes(module).pair;
            let mut both = found.into_iter().zip(shapes);
            std::array::from_fn(|_| {
                let (values, shape) = both.next().expect("A and B");
                Tensor::from_data(TensorData::new(values, shape), device)
            })
        });
        let starts: Vec<[Tensor<B, 2>; 2]> = starts.collect();
        for (module, start) in starts.iter().enumerate() {
            self.pairs[module].pair.clone_from(start);
        }
        self.starts = Some(starts);
        (0..self.modules.len()).for_each(|module| self.touch(module));
        Ok(())
    }

    /// Tells that a module's values, or how they are used, become others.
    fn touch(&mut self, module: usize) {
        self.versions[module] += 1;
        for (user, layer) in self.layers.iter_mut().enumerate() {
            if user == module || self.shared[user] == module {
                layer.rows.take();
            }
        }
    }

    /// Lets each A start at these values, row by row, where there are any.
    pub fn start_at(&mut self, starts: &[Vec<f32>], device: &B::Device) {
        let starts = starts.iter().enumerate();
        for (module, values) in starts.filter(|(_, values)| !values.is_empty()) {
            let [inputs, _, rank] = sizes(&self.modules[module]);
            let values = TensorData::new(values.clone(), [rank, inputs]);
            self.pair_mut(module).pair[0] = Tensor::from_data(values, device);
        }
    }

    /// Where the pairs of PiSSA started, to be written to.
    pub fn start_mut(&mut self, module: usize) -> Option<&mut [Tensor<B, 2>; 2]> {
        self.touch(module);
        Some(&mut self.starts.as_mut()?[module])
    }

    /// Where the pairs started, if they are PiSSA's.
    pub fn starts(&self) -> Option<&[[Tensor<B, 2>; 2]]> {
        self.starts.as_deref()
    }

    /// Where the pair that a module uses started.
    fn start(&self, module: usize) -> Option<&[Tensor<B, 2>; 2]> {
        let starts = self.starts.as_ref()?;
        Some(&starts[self.shared[module]])
    }

    /// Takes the components of a module that do not remain out of what it adds.
    pub fn prune(&mut self, module: usize, remaining: &[bool]) {
        self.touch(module);
        let start = self.starts.as_ref().map(|starts| &starts[module]);
        let zero = self.own[module].starts_at_zero();
        components::prune(&mut self.pairs[module].pair, start, (remaining, zero));
    }

    /// Method and sizes of a module.
    pub fn own(&self, module: usize) -> &Config {
        &self.own[module]
    }

    /// Puts factors on the modules' scales, and lets modules use the pair of another of the same shape: a module of
    /// its own. Empty lists for a factor of 1, and for each its own.
    pub fn put_to_use(&mut self, scales: &[f64], shared: &[usize]) {
        for module in 0..self.modules.len() {
            let scale = scales.get(module).copied().unwrap_or(1.0);
            let owner = shared.get(module).copied().unwrap_or(module);
            if (self.scales[module], self.shared[module]) != (scale, owner) {
                (self.scales[module], self.shared[module]) = (scale, owner);
                self.touch(module);
            }
        }
    }

    /// The factor on a module's scale.
    pub fn factor(&self, module: usize) -> f64 {
        self.scales[module]
    }

    /// The scale of a module's side path: the method's times the module's own factor.
    pub fn scale(&self, module: usize) -> f32 {
        (f64::from(self.own[module].scale()) * self.scales[module]) as f32
    }

    /// How many of a model's `layers` stand below a module: none below a table of embeddings, all of them below what stands
    /// behind them.
    pub fn layers_below(&self, module: usize, layers: usize) -> usize {
        match self.modules[module].layer {
            Some(layer) => layer as usize,
            None if self.own[module].is_embedding() => 0,
            None => layers,
        }
    }

    /// The module whose pair a module uses: itself, where it shares none.
    pub fn owner(&self, module: usize) -> usize {
        self.shared[module]
    }

    /// The two tensors of the pair that a module uses.
    pub fn pair(&self, module: usize) -> &[Tensor<B, 2>; 2] {
        &self.pairs[self.shared[module]].pair
    }

    /// The tensors that a module uses: the pair may be another's.
    pub fn used(&self, module: usize) -> Tensors<Tensor<B, 2>> {
        Tensors {
            pair: self.pair(module).clone(),
            ..self.pairs[module].clone()
        }
    }

    /// The tensors that each module has of its own.
    pub fn pairs(&self) -> &[Tensors<Tensor<B, 2>>] {
        &self.pairs
    }

    /// A module's tensors, to be written to: whatever was computed with them before is out of date.
    pub fn pair_mut(&mut self, module: usize) -> &mut Tensors<Tensor<B, 2>> {
        self.touch(module);
        &mut self.pairs[module]
    }

    /// DoRA's m and the bias that trains as a module has them in use, each `[out, 1]`: a [factor](Self::factor) scales
    /// what has been learnt, so that of both it is how far they have come from the layer's own.
    pub fn beside_pair(&self, module: usize) -> [Option<Tensor<B, 2>>; 2] {
        let factor = self.scales[module] as f32;
        let values = &self.pairs[module];
        let values = [&values.magnitude, &values.bias];
        std::array::from_fn(|i| {
            let value = values[i].clone()?;
            let start = self.layers[module].starts[i].as_ref()?;
            Some(scaled_from(start, value, factor))
        })
    }

    /// The rows of `W + s·BA` of a module of DoRA's, and those of W: `[out, 1]`.
    fn rows(&self, module: usize) -> Option<(&dora::Rows<B>, &Tensor<B, 2>)> {
        let layer = self.layers.get(module)?;
        let of_weight = layer.starts[0].as_ref()?;
        let rows = layer.rows.get_or_init(|| {
            let pair = self.factors(module);
            dora::Rows::of(&layer.weight, of_weight, &pair, self.scale(module))
        });
        Some((rows, of_weight))
    }

    /// `‖ΔW‖²` of a module, `[1]`.
    pub fn change_squares(&self, module: usize) -> Tensor<B, 1> {
        if let (Some((rows, of_weight)), [Some(magnitude), _]) =
            (self.rows(module), self.beside_pair(module))
        {
            return rows.change_squares(of_weight, &magnitude);
        }
        // By the Gram matrices of A and B.
        let [a, b] = self.factors(module);
        let of_a = a.clone().matmul(a.transpose());
        let of_b = b.clone().transpose().matmul(b);
        let scale = self.scale(module);
        (of_a * of_b).sum() * (scale * scale)
    }

    /// Two numbers of a module that change whenever what it adds may have.
    pub fn versions(&self, module: usize) -> [u64; 2] {
        [module, self.shared[module]].map(|module| self.versions[module])
    }

    /// What a component of a module adds something by where it is not zero: B's columns, or beside a table of embeddings A's
    /// rows, and of PiSSA how far both have come. Whether it is rows.
    pub fn learnt(&self, module: usize) -> Vec<(Tensor<B, 2>, bool)> {
        let [a, b] = self.pair(module).clone();
        match self.start(module).cloned() {
            Some([a0, b0]) => vec![(a - a0, true), (b - b0, false)],
            None if self.own[module].is_embedding() => vec![(a, true)],
            None => vec![(b, false)],
        }
    }

    /// What a module has learnt, of its components that remain alone if any do not: its two tensors, or the pair of twice
    /// the rank that PiSSA's is.
    pub fn trained(&self, module: usize, remaining: &[bool]) -> [Tensor<B, 2>; 2] {
        let of = |pair: &[Tensor<B, 2>; 2]| match remaining.contains(&false) {
            true => components::extract(pair, remaining),
            false => pair.clone(),
        };
        let pair = of(self.pair(module));
        match self.start(module) {
            Some(start) => pissa::moved(pair, of(start)),
            None => pair,
        }
    }

    /// A `[rank, in]` and B `[out, rank]` of a module as it stands, of PiSSA twice as many: its share of the weight is
    /// `s·BA`.
    pub fn factors(&self, module: usize) -> [Tensor<B, 2>; 2] {
        let [inputs, outputs, _] = sizes(&self.modules[module]);
        match (&self.projections, self.start(module)) {
            (None, None) => self.pair(module).clone(),
            (None, Some(start)) => pissa::moved(self.pair(module).clone(), start.clone()),
            (Some(projections), _) => {
                let pair = self.pair(module).clone().map(Tensor::from_inner);
                projections
                    .factors([outputs, inputs], pair)
                    .map(Tensor::inner)
            }
        }
    }
}

/// A value so many times as far from its start.
fn scaled_from<B: Backend>(start: &Tensor<B, 2>, value: Tensor<B, 2>, factor: f32) -> Tensor<B, 2> {
    match factor == 1.0 {
        true => value,
        false => value * factor + start.clone() * (1.0 - factor),
    }
}

/// A tensor of values in `±bound`, from the stream `name` of `seed`.
fn uniform<B: Kernels>(
    seed: u64,
    name: &str,
    bound: f32,
    shape: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream(name));
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| random.random_range(-bound..bound))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A name's stream of random numbers: FNV-1a, whose values never change between releases.
pub fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
