//! The allocator `rank-budget`: a rank for each module, under a budget for their sum that falls.
//!
//! AdaLoRA (Zhang et al. 2023), of LoRA pairs as they are: a component is row k of A and column k of B.
//! Of its sensitivity I, which the host measures at every step, two averages are kept (section 3.2):
//!
//! ```text
//! Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū
//! ```
//!
//! At each reallocation the b(t) components with the largest s remain, whatever their modules; all
//! others are pruned, and come back when theirs is among the largest again. With b₀ all components
//! there are, t of T steps done, and b_T the target (section 3.3):
//!
//! ```text
//! b(t) = b₀                                                  t ≤ tᵢ
//!        b_T + (b₀ − b_T)(1 − (t − tᵢ) / (T − tᵢ − t_f))³     tᵢ < t < T − t_f
//!        b_T, and the choice stays as it is                  T − t_f ≤ t
//! ```
//!
//! Nothing is added to Ī and Ū in steps without gradient of a module, which has none while its rank is 0, outside
//! probes.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::{Deserialize, Serialize};
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ComponentImportance, Count, ModuleInfo, Needs,
    Observation, Plugin, Result, Smoothing, Start, Unit, export_plugin, load_state, save_state,
};

/// Parameters of `rank-budget`, by the names of PEFT's `AdaLoraConfig`. Its `init_r` is the largest rank of the
/// adapter, `adapter.r_max` where that is given and else `adapter.rank`; its `deltaT` the schedule's `every`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The budget in the end: a mean rank per module (4), or a share of all components ("50%").
    #[schemars(extend("default" = "50%"))]
    target_r: Count,
    /// Steps at the start of the run in which nothing is pruned.
    tinit: u64,
    /// Steps at the end of the run in which the choice stays as it is. With fewer than the schedule's
    /// `every`, the last reallocation comes before the budget has quite fallen to its target.
    tfinal: u64,
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
            target_r: Count::Percent(50.0),
            tinit: 0,
            tfinal: 0,
            beta1: 0.85,
            beta2: 0.85,
        }
    }
}

/// The plugin.
pub struct RankBudget {
    parameters: Parameters,
    smoothing: Smoothing,
    /// `r_max` of each module.
    ranks: Vec<usize>,
    /// `b_T`.
    target: usize,
    state: State,
}

/// What a checkpoint keeps; lists are per module and component.
#[derive(Serialize, Deserialize)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
struct State {
    /// `Ī` and `Ū`.
    importance: ComponentImportance,
    /// The choice that stays, from the first reallocation of the last `tfinal` steps on.
    settled: Option<Vec<Vec<bool>>>,
}

impl Plugin for RankBudget {
    type Parameters = Parameters;

    const NAME: &'static str = "rank-budget";
    const DESCRIPTION: &'static str =
        "Keeps the most important rank-one components of all modules under a falling budget.";
    const REFERENCE: &'static str = "Zhang et al. 2023, AdaLoRA, sections 3.2 and 3.3";
    const FORMULA: &'static str = "Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū\nb(t) = b₀                                                  t ≤ tᵢ\n       b_T + (b₀ − b_T)(1 − (t − tᵢ) / (T − tᵢ − t_f))³     tᵢ < t < T − t_f\n       b_T, and the choice stays as it is                  T − t_f ≤ t";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let ranks: Vec<usize> = modules.iter().map(|module| module.rank as usize).collect();
        Ok(RankBudget {
            smoothing: Smoothing::new(parameters.beta1, parameters.beta2)?,
            target: target(parameters.target_r, &ranks)?,
            parameters,
            ranks,
            state: State {
                importance: ComponentImportance::new(modules),
                settled: None,
            },
        })
    }
}

/// `b_T` of modules with these `r_max`.
fn target(target_r: Count, ranks: &[usize]) -> Result<usize> {
    let all: usize = ranks.iter().sum();
    match target_r {
        Count::Percent(_) => target_r.resolve(all),
        Count::Exactly(mean) => match usize::try_from(mean)
            .ok()
            .and_then(|mean| mean.checked_mul(ranks.len()))
        {
            Some(target) if target <= all => Ok(target),
            _ => Err(format!(
                "parameter `target_r`: a mean rank of {mean} is above the adapter's, which is {}: give \
                 less, raise the adapter's rank, or give a share such as \"50%\"",
                all / ranks.len().max(1)
            )
            .into()),
        },
    }
}

impl RankBudget {
    /// Refuses a run that is too short for `tinit` and `tfinal`.
    fn fits_into(&self, total: u64) -> Result<()> {
        let Parameters { tinit, tfinal, .. } = self.parameters;
        if tinit.saturating_add(tfinal) < total {
            return Ok(());
        }
        Err(format!(
            "`tinit` = {tinit} and `tfinal` = {tfinal} leave none of the run's {total} steps for the \
             budget to fall in: give less"
        )
        .into())
    }

    /// `b(t)` of a run of `total` steps, rounded down as in PEFT.
    fn budget(&self, step: u64, total: u64) -> usize {
        let (first, last) = (self.parameters.tinit, total - self.parameters.tfinal);
        let all: usize = self.ranks.iter().sum();
        if step <= first {
            return all;
        }
        if step >= last {
            return self.target;
        }
        let left = 1.0 - (step - first) as f64 / (last - first) as f64;
        let (all, target) = (all as f64, self.target as f64);
        ((all - target) * left.powi(3) + target) as usize
    }

    /// The `budget` components with the largest scores. Among equals the first of every module come
    /// before the second, so that they spread evenly over the modules.
    fn largest(&self, budget: usize) -> Vec<Vec<bool>> {
        let most = self.ranks.iter().copied().max().unwrap_or(0);
        let mut order: Vec<(f64, usize, usize)> = (0..most)
            .flat_map(|k| (0..self.ranks.len()).map(move |module| (module, k)))
            .filter(|(module, k)| *k < self.ranks[*module])
            .map(|(module, k)| (self.state.importance.score(module, k), module, k))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut remaining: Vec<Vec<bool>> =
            self.ranks.iter().map(|rank| vec![false; *rank]).collect();
        for (_, module, k) in order.into_iter().take(budget) {
            remaining[module][k] = true;
        }
        remaining
    }
}

impl Allocator for RankBudget {
    fn needs(&self) -> Needs {
        Needs::default().without_scores().and_components()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        if start.unit != Unit::Module {
            return Err(
                "it chooses components of single modules: set unit = \"module\" in [allocation]"
                    .into(),
            );
        }
        let total = start.total_steps;
        self.fits_into(total)?;
        let Some(last) = start.last_reallocation else {
            return Ok(Vec::new());
        };
        let (all, end) = (self.ranks.iter().sum::<usize>(), self.budget(last, total));
        let tinit = self.parameters.tinit;
        let warning = if last <= tinit {
            format!(
                "nothing will ever be pruned: the last reallocation is after step {last}, and `tinit` = {tinit} \
                 keeps everything until then; give less, or reallocate later"
            )
        } else if (end - self.target) * 10 > all - self.target {
            format!(
                "the budget will not fall to its target: at the last reallocation, after step {last} of {total}, it \
                 is {end} of {all} components, and not {}; reallocate later, or give a larger `tfinal`",
                self.target
            )
        } else {
            return Ok(Vec::new());
        };
        Ok(vec![warning])
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let importance = &mut self.state.importance;
        importance.observe(&self.smoothing, &observation.components, None)
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let (tfinal, total) = (self.parameters.tfinal, request.total_steps);
        self.fits_into(total)?;
        if let Some(settled) = &self.state.settled {
            return Ok(Allocation::of_components(settled.clone()));
        }
        let remaining = self.largest(self.budget(request.step, total));
        if request.step >= total - tfinal {
            self.state.settled = Some(remaining.clone());
        }
        Ok(Allocation::of_components(remaining))
    }

    fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.state)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: State = load_state(state)?;
        let ranks = self.ranks.iter().copied();
        let settled = |settled: &Vec<Vec<bool>>| settled.iter().map(Vec::len).eq(ranks.clone());
        let fits =
            state.importance.fits(ranks.clone()) && state.settled.as_ref().is_none_or(settled);
        if !fits {
            return Err("the saved state is of other modules or ranks than the model's".into());
        }
        self.state = state;
        Ok(())
    }
}

export_plugin!(allocator RankBudget);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};
    use proptest::prelude::*;

    /// A fresh plugin over so many of the test kit's modules.
    fn fresh(parameters: &str, modules: usize) -> Result<impl Allocator> {
        testing::allocator::<RankBudget>(parameters, modules)
    }

    fn observe(allocator: &mut impl Allocator, step: u64, components: &[Vec<f32>]) -> Result<()> {
        let mut observation = Observation::default();
        observation.step = step;
        observation.active = vec![true; components.len()];
        observation.components = components.to_vec();
        allocator.observe(&observation)
    }

    fn request(modules: usize, step: u64, total_steps: u64) -> AllocationRequest {
        let mut request = testing::request(&vec![0.0; modules]);
        (request.step, request.total_steps) = (step, total_steps);
        request
    }

    /// What remains at `step` of `total`.
    fn remaining(
        allocator: &mut impl Allocator,
        modules: usize,
        step: u64,
        total: u64,
    ) -> Vec<Vec<bool>> {
        let answer = allocator.allocate(&request(modules, step, total)).unwrap();
        let components = answer.components.unwrap();
        let active: Vec<bool> = components
            .iter()
            .map(|module| module.contains(&true))
            .collect();
        assert_eq!(answer.active, active);
        components
    }

    fn count(components: &[Vec<bool>]) -> usize {
        components
            .iter()
            .flatten()
            .filter(|remains| **remains)
            .count()
    }

    fn budgets(parameters: &str, modules: usize, total: u64, steps: &[u64]) -> Vec<usize> {
        let at = |step: &u64| {
            count(&remaining(
                &mut fresh(parameters, modules).unwrap(),
                modules,
                *step,
                total,
            ))
        };
        steps.iter().map(at).collect()
    }

    #[test]
    fn the_budget_is_that_of_pefts_adalora() {
        // By `RankAllocator.budget_schedule` of PEFT 0.21.2: 36 modules of rank 8, and 24.
        assert_eq!(
            budgets(
                r#"{"target_r": 4, "tinit": 80, "tfinal": 200}"#,
                36,
                801,
                &[
                    50, 80, 81, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600, 601, 602,
                    650, 800
                ]
            ),
            [
                288, 288, 287, 272, 237, 209, 188, 171, 160, 152, 147, 145, 144, 144, 144, 144,
                144, 144
            ]
        );
        assert_eq!(
            budgets(
                r#"{"target_r": "25%"}"#,
                24,
                1000,
                &[1, 100, 200, 250, 333, 500, 667, 750, 900, 999, 1000]
            ),
            [191, 152, 121, 108, 90, 66, 53, 50, 48, 48, 48]
        );
    }

    #[test]
    fn a_component_scores_by_its_mean_times_its_uncertainty() {
        // One step of the averages from zero gives s = 0.15 I · 0.15 · 0.85 I: larger, for larger I.
        let mut allocator = fresh(r#"{"target_r": 1}"#, 2).unwrap();
        let mut first = vec![vec![1.0; 8], vec![2.0; 8]];
        first[0][5] = 9.0;
        observe(&mut allocator, 1, &first).unwrap();
        let chosen = remaining(&mut allocator, 2, 10, 10);
        assert!(chosen[0][5] && chosen[1][0] && count(&chosen) == 2);

        // A steady value loses its uncertainty, a changing one of the same mean keeps it.
        let mut allocator = fresh(r#"{"target_r": 1}"#, 1).unwrap();
        for step in 1..=60 {
            let mut values = vec![0.0; 8];
            values[2] = 1.0;
            values[6] = if step % 2 == 0 { 1.5 } else { 0.5 };
            observe(&mut allocator, step, &[values]).unwrap();
        }
        assert!(remaining(&mut allocator, 1, 10, 10)[0][6]);

        // By hand, at β₁ = 0.5, β₂ = 0: values 4 and then 1 give Ī = 2, 1.5 and s = 1.5 · 0.5 = 0.75;
        // 1 and then 3 give Ī = 0.5, 1.75 and s = 1.75 · 1.25; 0 and 2 give Ī = 0, 1 and s = 1.
        let mut allocator = fresh(r#"{"target_r": "25%", "beta1": 0.5, "beta2": 0.0}"#, 1).unwrap();
        observe(
            &mut allocator,
            1,
            &[vec![4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]],
        )
        .unwrap();
        observe(
            &mut allocator,
            2,
            &[vec![1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]],
        )
        .unwrap();
        let state: State = load_state(&allocator.save().unwrap()).unwrap();
        assert_eq!(state.importance.sensitivity[0][..3], [1.5, 1.75, 1.0]);
        assert_eq!(state.importance.uncertainty[0][..3], [0.5, 1.25, 1.0]);
        let chosen = remaining(&mut allocator, 1, 10, 10);
        assert_eq!(
            chosen[0],
            [false, true, true, false, false, false, false, false]
        );
    }

    #[test]
    fn what_is_not_measured_keeps_its_score_and_components_come_back() {
        let mut allocator = fresh("{}", 2).unwrap();
        observe(&mut allocator, 1, &[vec![2.0; 8], vec![1.0; 8]]).unwrap();
        assert_eq!(
            remaining(&mut allocator, 2, 998, 1000),
            [[true; 8], [false; 8]]
        );
        // Now the second has rank 0 and is measured in a probe alone.
        let averages = |allocator: &dyn Allocator| -> State {
            load_state(&allocator.save().unwrap()).unwrap()
        };
        let before = averages(&allocator);
        observe(&mut allocator, 2, &[vec![2.0; 8], vec![]]).unwrap();
        let after = averages(&allocator);
        assert_eq!(
            after.importance.sensitivity[1],
            before.importance.sensitivity[1]
        );
        assert_eq!(
            after.importance.uncertainty[1],
            before.importance.uncertainty[1]
        );
        assert!(after.importance.sensitivity[0] > before.importance.sensitivity[0]);
        observe(&mut allocator, 3, &[vec![2.0; 8], vec![90.0; 8]]).unwrap();
        assert_eq!(
            remaining(&mut allocator, 2, 999, 1000),
            [[false; 8], [true; 8]]
        );
    }

    #[test]
    fn equals_spread_over_the_modules() {
        let mut allocator = fresh(r#"{"target_r": 3}"#, 4).unwrap();
        for module in remaining(&mut allocator, 4, 999, 1000) {
            assert_eq!(
                module,
                [true, true, true, false, false, false, false, false]
            );
        }
        // Even fewer than there are modules.
        let mut one = fresh(r#"{"target_r": "1%"}"#, 4).unwrap();
        assert_eq!(count(&remaining(&mut one, 4, 999, 1000)), 1);
    }

    #[test]
    fn the_choice_of_the_last_steps_stays() {
        let mut allocator = fresh(r#"{"tfinal": 100}"#, 2).unwrap();
        observe(&mut allocator, 1, &[vec![2.0; 8], vec![1.0; 8]]).unwrap();
        let settled = remaining(&mut allocator, 2, 900, 1000);
        observe(&mut allocator, 2, &[vec![0.0; 8], vec![90.0; 8]]).unwrap();
        assert_eq!(remaining(&mut allocator, 2, 950, 1000), settled);
        let mut resumed = fresh(r#"{"tfinal": 100}"#, 2).unwrap();
        resumed.load(&allocator.save().unwrap()).unwrap();
        assert_eq!(remaining(&mut resumed, 2, 960, 1000), settled);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |parameters, words: &str| {
            let error = fresh(parameters, 4).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(
            r#"{"target_r": 9}"#,
            "a mean rank of 9 is above the adapter's, which is 8",
        );
        refused(
            r#"{"target_r": 18446744073709551615}"#,
            "above the adapter's",
        );
        refused(r#"{"beta1": 1.0}"#, "`beta1` is 1");
        refused(r#"{"deltaT": 10}"#, "`deltaT`");
        let mut short = fresh(r#"{"tinit": 60, "tfinal": 40}"#, 4).unwrap();
        let error = short
            .allocate(&request(4, 50, 100))
            .unwrap_err()
            .to_string();
        assert!(error.contains("none of the run's 100 steps"), "{error}");
        let mut start = Start::periodic(100, 10);
        let error = short.start(&start).unwrap_err().to_string();
        assert!(error.contains("none of the run's 100 steps"), "{error}");
        let mut allocator = fresh("{}", 2).unwrap();
        assert!(allocator.start(&start).unwrap().is_empty());
        start.unit = Unit::Layer;
        let error = allocator.start(&start).unwrap_err().to_string();
        assert!(error.contains("unit = \"module\""), "{error}");
        let mut allocator = fresh("{}", 2).unwrap();
        for components in [
            vec![vec![1.0; 8]],
            vec![vec![1.0; 8], vec![1.0; 7]],
            vec![vec![1.0; 8], vec![-1.0; 8]],
            vec![vec![f32::NAN; 8], vec![1.0; 8]],
        ] {
            assert!(
                observe(&mut allocator, 1, &components).is_err(),
                "{components:?}"
            );
        }
        let state = fresh("{}", 3).unwrap().save().unwrap();
        assert!(
            allocator
                .load(&state)
                .unwrap_err()
                .to_string()
                .contains("other modules")
        );
    }

    #[test]
    fn a_budget_that_cannot_do_its_work_is_warned_of() {
        let warnings = |parameters, total, last| {
            let mut allocator = fresh(parameters, 4).unwrap();
            let mut start = Start::periodic(total, 4);
            start.last_reallocation = last;
            allocator.start(&start).unwrap().join("; ")
        };
        let never = warnings(r#"{"tinit": 9}"#, 12, Some(8));
        assert!(never.contains("nothing will ever be pruned"), "{never}");
        assert!(
            never.contains("after step 8") && never.contains("`tinit` = 9"),
            "{never}"
        );
        assert_eq!(warnings("{}", 100, Some(80)), "");
        let little = warnings("{}", 100, Some(20));
        assert!(
            little.contains("after step 20 of 100") && little.contains("and not 16"),
            "{little}"
        );
        // Nothing to say where there is nothing to do.
        assert_eq!(warnings("{}", 100, None), "");
        assert_eq!(warnings(r#"{"target_r": "100%"}"#, 100, Some(20)), "");
    }

    fn sensitivity() -> impl Strategy<Value = f32> {
        prop_oneof![
            0.0..1.0_f32,
            prop::sample::select(vec![0.0, 0.5, 1e-45, f32::MAX]),
        ]
    }

    /// Steps of so many modules, some without measurements.
    fn steps(modules: usize) -> impl Strategy<Value = Vec<Vec<Vec<f32>>>> {
        let module = prop_oneof![
            1 => Just(Vec::new()),
            4 => prop::collection::vec(sensitivity(), 8),
            2 => sensitivity().prop_map(|value| vec![value; 8]),
        ];
        prop::collection::vec(prop::collection::vec(module, modules), 0..4)
    }

    proptest! {
        #[test]
        fn exactly_the_budget_remains_and_none_of_the_others_scores_more(
            (modules, steps) in (1..12_usize).prop_flat_map(|modules| (Just(modules), steps(modules))),
            mean in 1..=8_u64,
            at in 0..=100_u64,
        ) {
            let parameters = format!(r#"{{"target_r": {mean}, "tinit": 10, "tfinal": 20}}"#);
            let mut allocator = fresh(&parameters, modules).unwrap();
            for (step, components) in (1..).zip(&steps) {
                observe(&mut allocator, step, components).unwrap();
            }
            let chosen = remaining(&mut allocator, modules, at, 100);
            prop_assert!(chosen.iter().all(|module| module.len() == 8));
            // b(t) in whole numbers; its floor is met but for a rounding where it is a whole number.
            let (all, target) = (8 * modules as u64, mean * modules as u64);
            let left = 80 - at.clamp(10, 80);
            let exact = (all - target) * left.pow(3);
            let floor = target + exact / 70_u64.pow(3);
            let below = u64::from(exact.is_multiple_of(70_u64.pow(3)));
            let count = count(&chosen) as u64;
            prop_assert!((floor - below..=floor).contains(&count), "{count}, not {floor}");

            let state: State = load_state(&allocator.save().unwrap()).unwrap();
            let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
            for (module, components) in chosen.iter().enumerate() {
                for (k, remains) in components.iter().enumerate() {
                    let score = state.importance.sensitivity[module][k] * state.importance.uncertainty[module][k];
                    if *remains { least = least.min(score) } else { most = most.max(score) }
                }
            }
            prop_assert!(least >= most, "{least} remains, {most} does not");
        }
    }

    #[test]
    fn conforms() {
        conformance::allocator::<RankBudget>().assert();
    }
}
