//! The allocator `grow`: ranks that are pruned in one module and grown in another, their sum staying as it is.
//!
//! ElaLoRA (Chang et al. 2025, section 3), of LoRA pairs as they are: a component is row k of A and column k of B,
//! the adapter's rank is `r_max`, and each module begins with the first `rank` components. Of a component's
//! sensitivity I, which the host measures, two averages are kept while it is there, as AdaLoRA's (`rank-budget`):
//!
//! ```text
//! Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū
//! ```
//!
//! At each reallocation every module puts up its k least important components, never its last. Of all put up, the
//! b(t) least important are pruned, and the b(t) most important each bring their module a new one: where even the
//! least important component is worth much, there is too little room. With T steps in all,
//!
//! ```text
//! b(t) = 0                          t ≤ tinit                  warm-up
//!        round(b · (1 − p³))        p = (t − tinit) / (T − tinit − tfinal)
//!        0                          T − tfinal ≤ t             the ranks stay
//! ```
//!
//! A new component begins with B = 0 (the paper's with a singular value of almost 0), and with averages of 0.
//! ElaLoRA's program smooths each entry and then takes means; here the means are smoothed, one number a component.
//! Ours: no component is pruned for one that is not more important, a module does not give and take at once, and one
//! at `r_max` lets the next have its turn.
//!
//! Begin with `initial = "allocator"`: then ranks are `rank` from step 1. Under any other the first reallocation
//! prunes each module to its `rank` most important components.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::{Deserialize, Serialize};
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ComponentImportance, Count, ModuleInfo, Needs,
    Observation, Plugin, Result, Smoothing, Start, Unit, export_plugin, load_state, save_state,
};

/// Parameters of `grow`, by the names of ElaLoRA's program where it has any.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The rank each module begins with: a number, or a share of the adapter's rank such as "50%".
    #[schemars(extend("default" = "50%"))]
    rank: Count,
    /// b, how many components move at a reallocation at most.
    #[schemars(range(min = 1))]
    b: u64,
    /// k, how many components a module gives or takes at a reallocation at most.
    #[schemars(range(min = 1))]
    k: u64,
    /// Steps at the start of the run in which none moves.
    tinit: u64,
    /// Steps at the end of the run in which none moves.
    tfinal: u64,
    /// Whether b falls to 0 in between, or stays.
    scheduler: bool,
    /// Decay of the average sensitivity.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    beta1: f64,
    /// Decay of the average uncertainty.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    beta2: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            rank: Count::Percent(50.0),
            b: 4,
            k: 2,
            tinit: 0,
            tfinal: 0,
            scheduler: true,
            beta1: 0.85,
            beta2: 0.85,
        }
    }
}

/// The plugin.
pub struct Grow {
    parameters: Parameters,
    smoothing: Smoothing,
    /// The rank each module begins with.
    initial: Vec<usize>,
    state: State,
}

/// What a checkpoint keeps; lists are per module and component.
#[derive(Serialize, Deserialize)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
struct State {
    /// `Ī` and `Ū`.
    importance: ComponentImportance,
    /// The components that are there; none before the first choice.
    there: Option<Vec<Vec<bool>>>,
}

impl Plugin for Grow {
    type Parameters = Parameters;

    const NAME: &'static str = "grow";
    const DESCRIPTION: &'static str =
        "Moves rank-one components from where they matter least to where more are needed.";
    const REFERENCE: &'static str = "Chang et al. 2025, ElaLoRA, section 3, and its program";
    const FORMULA: &'static str = "Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū\nb(t) = 0                          t ≤ tinit                  warm-up\n       round(b · (1 − p³))        p = (t − tinit) / (T − tinit − tfinal)\n       0                          T − tfinal ≤ t             the ranks stay";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        for (name, count) in [("b", parameters.b), ("k", parameters.k)] {
            if count == 0 {
                return Err(format!("parameter `{name}` is 0, but must be at least 1").into());
            }
        }
        let initial = |module: &ModuleInfo| {
            let rank = parameters.rank.resolve(module.rank as usize);
            rank.map_err(|_| {
                format!(
                    "parameter `rank` is above the adapter's, which is {} for {}: raise the adapter's rank, which is \
                     the most a module can grow to, or give a share such as \"50%\"",
                    module.rank, module.path
                )
                .into()
            })
        };
        Ok(Grow {
            initial: modules.iter().map(initial).collect::<Result<_>>()?,
            smoothing: Smoothing::new(parameters.beta1, parameters.beta2)?,
            parameters,
            state: State {
                importance: ComponentImportance::new(modules),
                there: None,
            },
        })
    }
}

/// A component and what it is worth.
#[derive(Clone, Copy)]
struct Component {
    score: f64,
    module: usize,
    index: usize,
}

impl Grow {
    /// `b(t)` of a run of `total` steps.
    fn moves(&self, step: u64, total: u64) -> usize {
        let Parameters {
            b,
            tinit,
            tfinal,
            scheduler,
            ..
        } = self.parameters;
        let last = total.saturating_sub(tfinal);
        if step <= tinit || step >= last {
            return 0;
        }
        let progress = (step - tinit) as f64 / (last - tinit) as f64;
        match scheduler {
            // As Python rounds, halves to the even neighbour.
            true => (b as f64 - b as f64 * progress.powi(3)).round_ties_even() as usize,
            false => b as usize,
        }
    }

    /// The components of a module, the most important first and equals in order, as far as `which` says.
    fn ranked(&self, module: usize, which: impl Fn(usize) -> bool) -> Vec<Component> {
        let importance = &self.state.importance;
        let rank = importance.ranks().nth(module).unwrap_or(0);
        let components = (0..rank).filter(|index| which(*index));
        let mut components: Vec<_> = components
            .map(|index| Component {
                score: importance.score(module, index),
                module,
                index,
            })
            .collect();
        components.sort_by(|a, b| b.score.total_cmp(&a.score));
        components
    }

    /// What is there before anything has moved: the most important of each module, its first where none has been
    /// measured.
    fn first(&self) -> Vec<Vec<bool>> {
        let ranks = self.state.importance.ranks().zip(&self.initial);
        let module = |(module, (most, rank)): (usize, (usize, &usize))| {
            let mut there = vec![false; most];
            for component in self.ranked(module, |_| true).into_iter().take(*rank) {
                there[component.index] = true;
            }
            there
        };
        ranks.enumerate().map(module).collect()
    }

    /// Moves up to `b` components.
    fn reallocate(&mut self, b: usize, there: &mut [Vec<bool>]) {
        let k = self.parameters.k as usize;
        let mut up: Vec<Component> = Vec::new();
        for (module, there) in there.iter().enumerate() {
            let mut ranked = self.ranked(module, |index| there[index]);
            let put_up = k.min(ranked.len().saturating_sub(1));
            up.extend(ranked.drain(ranked.len() - put_up..));
        }
        up.sort_by(|a, b| a.score.total_cmp(&b.score));
        let mut room: Vec<usize> = there
            .iter()
            .map(|there| there.iter().filter(|there| !**there).count().min(k))
            .collect();
        let (mut gives, mut takes) = (vec![false; there.len()], vec![false; there.len()]);
        let mut rest = up.as_slice();
        for _ in 0..b {
            // The least important of a module that takes nothing, and the most important of one that gives nothing and
            // has room.
            let Some(least) = rest.iter().position(|up| !takes[up.module]) else {
                break;
            };
            let giver = rest[least];
            let may = |up: &Component| {
                !gives[up.module] && up.module != giver.module && room[up.module] > 0
            };
            let Some(most) = rest.iter().rposition(may) else {
                break;
            };
            let taker = rest[most];
            if most <= least || taker.score <= giver.score {
                break;
            }
            (gives[giver.module], takes[taker.module]) = (true, true);
            room[taker.module] -= 1;
            there[giver.module][giver.index] = false;
            let grown = there[taker.module].iter().position(|there| !there);
            for (module, index) in [(giver.module, Some(giver.index)), (taker.module, grown)] {
                let Some(index) = index else { continue };
                self.state.importance.forget(module, index);
            }
            if let Some(index) = grown {
                there[taker.module][index] = true;
            }
            rest = &rest[least + 1..most];
        }
    }
}

impl Allocator for Grow {
    fn needs(&self) -> Needs {
        Needs::default().without_scores().and_components()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        if start.unit != Unit::Module {
            return Err(
                "it moves components of single modules: set unit = \"module\" in [allocation]"
                    .into(),
            );
        }
        let Parameters { tinit, tfinal, .. } = self.parameters;
        let total = start.total_steps;
        if tinit.saturating_add(tfinal) >= total {
            return Err(format!(
                "`tinit` = {tinit} and `tfinal` = {tfinal} leave none of the run's {total} steps for ranks to \
                 move in: give less"
            )
            .into());
        }
        let mut full = self.initial.iter().zip(self.state.importance.ranks());
        let mut warnings = Vec::new();
        if full.all(|(rank, most)| *rank == most) {
            warnings.push(
                "nothing can grow: every module begins with the adapter's whole rank; give a smaller `rank`"
                    .to_owned(),
            );
        }
        if !start.first_choice {
            warnings.push(
                "until the first reallocation every module has the adapter's whole rank; set initial = \"allocator\" \
                 in [allocation] to begin with `rank`"
                    .to_owned(),
            );
        }
        if start.last_reallocation.is_some_and(|last| last <= tinit) {
            warnings.push(format!(
                "nothing will ever move: `tinit` = {tinit} keeps all ranks until after the last reallocation"
            ));
        }
        Ok(warnings)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let State { importance, there } = &mut self.state;
        importance.observe(&self.smoothing, &observation.components, there.as_deref())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let there = match self.state.there.take() {
            None => self.first(),
            Some(mut there) => {
                let b = self.moves(request.step, request.total_steps);
                self.reallocate(b, &mut there);
                there
            }
        };
        self.state.there = Some(there.clone());
        Ok(Allocation::of_components(there))
    }

    fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.state)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: State = load_state(state)?;
        let ranks: Vec<usize> = self.state.importance.ranks().collect();
        let ranks = ranks.iter().copied();
        let fits = |there: &Vec<Vec<bool>>| there.iter().map(Vec::len).eq(ranks.clone());
        if !state.importance.fits(ranks.clone()) || !state.there.as_ref().is_none_or(fits) {
            return Err("the saved state is of other modules or ranks than the model's".into());
        }
        self.state = state;
        Ok(())
    }
}

export_plugin!(allocator Grow);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};
    use proptest::prelude::*;

    fn fresh(parameters: &str, modules: usize) -> impl Allocator {
        testing::allocator::<Grow>(parameters, modules).unwrap()
    }

    fn observe(allocator: &mut impl Allocator, step: u64, components: &[Vec<f32>]) {
        let mut observation = Observation::default();
        observation.step = step;
        observation.active = vec![true; components.len()];
        observation.components = components.to_vec();
        allocator.observe(&observation).unwrap();
    }

    fn components(
        allocator: &mut impl Allocator,
        modules: usize,
        step: u64,
        total_steps: u64,
    ) -> Vec<Vec<bool>> {
        let mut request = testing::request(&vec![0.0; modules]);
        (request.step, request.total_steps) = (step, total_steps);
        allocator.allocate(&request).unwrap().components.unwrap()
    }

    fn ranks(components: &[Vec<bool>]) -> Vec<usize> {
        let rank = |module: &Vec<bool>| module.iter().filter(|there| **there).count();
        components.iter().map(rank).collect()
    }

    /// One value for each of the eight components of each module.
    fn level(values: &[f32]) -> Vec<Vec<f32>> {
        values.iter().map(|value| vec![*value; 8]).collect()
    }

    #[test]
    fn begins_with_its_rank_and_moves_from_the_least_to_the_most_important() {
        let mut allocator = fresh(r#"{"rank": 4, "b": 2, "k": 1, "scheduler": false}"#, 4);
        let first = components(&mut allocator, 4, 0, 1000);
        assert_eq!(ranks(&first), [4; 4]);
        assert!(first.iter().all(|module| module[..4] == [true; 4]));
        observe(&mut allocator, 1, &level(&[1.0, 4.0, 2.0, 3.0]));
        let moved = components(&mut allocator, 4, 50, 1000);
        assert_eq!(ranks(&moved), [3, 5, 3, 5]);
        // The last of equals goes, and the first that is free comes.
        assert_eq!(
            moved[0],
            [true, true, true, false, false, false, false, false]
        );
        assert_eq!(
            moved[1],
            [true, true, true, true, true, false, false, false]
        );
    }

    #[test]
    fn a_module_s_least_important_component_speaks_for_it() {
        // Module 0 has the largest component of all, but module 1's smallest is larger than its.
        let mut allocator = fresh(r#"{"rank": 2, "b": 1, "k": 1, "scheduler": false}"#, 3);
        components(&mut allocator, 3, 0, 1000);
        let mut measured = level(&[0.0, 3.0, 1.0]);
        (measured[0][0], measured[0][1]) = (9.0, 2.0);
        observe(&mut allocator, 1, &measured);
        let moved = components(&mut allocator, 3, 50, 1000);
        assert_eq!(ranks(&moved), [2, 3, 1]);
    }

    #[test]
    fn nothing_moves_to_what_is_not_more_important_or_has_no_room_or_is_alone() {
        // Equals.
        let mut allocator = fresh(r#"{"rank": 4, "scheduler": false}"#, 4);
        components(&mut allocator, 4, 0, 1000);
        observe(&mut allocator, 1, &level(&[1.0; 4]));
        assert_eq!(ranks(&components(&mut allocator, 4, 50, 1000)), [4; 4]);
        // From one module to the only other, until the one has its last component and the other has all.
        let mut allocator = fresh(r#"{"rank": 4, "b": 4, "k": 2, "scheduler": false}"#, 2);
        components(&mut allocator, 2, 0, 1000);
        let mut seen = Vec::new();
        for step in 1..=6 {
            for _ in 0..40 {
                observe(
                    &mut allocator,
                    step,
                    &level(&[1.0 + step as f32, 1.0 + 9.0 * step as f32]),
                );
            }
            seen.push(ranks(&components(&mut allocator, 2, 50 * step, 1000)));
        }
        assert_eq!(seen[..2], [[2, 6], [1, 7]]);
        assert_eq!(seen[2..], [[1, 7]; 4]);
    }

    #[test]
    fn the_schedule_is_that_of_elaloras_program() {
        // `_b_scheduler` of its RankAllocator: round(b + (0 − b) p³), with Python's round, at b = 10.
        let moves = |parameters: &str, steps: &[u64]| {
            let parameters = read(parameters);
            let grow = Grow::new(parameters, &testing::modules(1)).unwrap();
            steps
                .iter()
                .map(|step| grow.moves(*step, 1000))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            moves(
                r#"{"b": 10, "tinit": 100, "tfinal": 100}"#,
                &[0, 100, 101, 300, 500, 600, 700, 800, 850, 899, 900, 1000]
            ),
            [0, 0, 10, 10, 9, 8, 6, 3, 2, 0, 0, 0]
        );
        // 12 − 12 · 0.125 = 10.5.
        assert_eq!(
            moves(r#"{"b": 12, "tinit": 100, "tfinal": 100}"#, &[500]),
            [10]
        );
        assert_eq!(
            moves(
                r#"{"b": 3, "scheduler": false, "tfinal": 1}"#,
                &[1, 500, 998, 999]
            ),
            [3, 3, 3, 0]
        );
    }

    fn read(parameters: &str) -> Parameters {
        dynalora_plugin_api::abi::plugin::construct::<Echo>(parameters, &[])
            .unwrap()
            .0
    }

    /// Reads parameters as the boundary does.
    struct Echo(Parameters);

    impl Plugin for Echo {
        type Parameters = Parameters;
        const NAME: &'static str = "echo";
        const DESCRIPTION: &'static str = "";
        const REFERENCE: &'static str = "";

        fn new(parameters: Parameters, _: &[ModuleInfo]) -> Result<Self> {
            Ok(Echo(parameters))
        }
    }

    #[test]
    fn a_component_that_comes_back_begins_anew() {
        let mut allocator = fresh(r#"{"rank": 4, "b": 1, "k": 1, "scheduler": false}"#, 2);
        components(&mut allocator, 2, 0, 1000);
        observe(&mut allocator, 1, &level(&[1.0, 2.0]));
        assert_eq!(ranks(&components(&mut allocator, 2, 50, 1000)), [3, 5]);
        let state: State = load_state(&allocator.save().unwrap()).unwrap();
        assert_eq!(
            (
                state.importance.sensitivity[0][3],
                state.importance.sensitivity[1][4]
            ),
            (0.0, 0.0)
        );
        // What is not there is not averaged, whatever is measured of it.
        observe(&mut allocator, 2, &level(&[9.0, 2.0]));
        let state: State = load_state(&allocator.save().unwrap()).unwrap();
        assert_eq!(state.importance.sensitivity[0][3], 0.0);
        assert!(state.importance.sensitivity[1][4] > 0.0);
    }

    #[test]
    fn what_cannot_work_is_said_before_the_run() {
        let refused = |parameters: &str| {
            testing::allocator::<Grow>(parameters, 4)
                .err()
                .map(|error| error.to_string())
        };
        let error = refused(r#"{"rank": 9}"#).unwrap();
        assert!(
            error.contains("`rank`") && error.contains("which is 8"),
            "{error}"
        );
        assert!(refused(r#"{"b": 0}"#).unwrap().contains("`b`"));
        let start = |parameters: &str| {
            let mut start = testing::start();
            start.first_choice = true;
            fresh(parameters, 4).start(&start)
        };
        assert!(start("{}").unwrap().is_empty());
        let late = fresh("{}", 4).start(&testing::start()).unwrap();
        assert!(late.concat().contains("initial = \"allocator\""));
        assert!(
            start(r#"{"rank": 8}"#)
                .unwrap()
                .concat()
                .contains("nothing can grow")
        );
        assert!(
            start(r#"{"tinit": 960}"#)
                .unwrap()
                .concat()
                .contains("nothing will ever move")
        );
        assert!(start(r#"{"tinit": 600, "tfinal": 400}"#).is_err());
    }

    fn measurements() -> impl Strategy<Value = Vec<Vec<Vec<f32>>>> {
        let value = prop_oneof![Just(0.0_f32), 0.0..1.0_f32, Just(f32::MAX), Just(1e-45_f32)];
        let module = prop::collection::vec(value, 8);
        prop::collection::vec(prop::collection::vec(module, 5), 1..12)
    }

    proptest! {
        #[test]
        fn the_sum_of_ranks_stays_and_no_module_is_ever_without(
            steps in measurements(), rank in 1..=8_u64, b in 1..20_u64, k in 1..9_u64,
        ) {
            let parameters =
                format!(r#"{{"rank": {rank}, "b": {b}, "k": {k}, "scheduler": false}}"#);
            let mut allocator = fresh(&parameters, 5);
            let mut before = ranks(&components(&mut allocator, 5, 0, 1000));
            for (step, measured) in (1..).zip(&steps) {
                observe(&mut allocator, step, measured);
                let after = ranks(&components(&mut allocator, 5, step, 1000));
                prop_assert_eq!(after.iter().sum::<usize>(), 5 * rank as usize);
                prop_assert!(after.iter().all(|rank| (1..=8).contains(rank)));
                let moved = after.iter().zip(&before).map(|(a, b)| a.abs_diff(*b));
                prop_assert!(moved.clone().all(|moved| moved <= k as usize));
                prop_assert!(moved.sum::<usize>() <= 2 * b as usize);
                before = after;
            }
        }
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Grow>().assert();
    }
}
