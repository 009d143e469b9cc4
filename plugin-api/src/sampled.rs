//! Which steps a scorer has measured: measuring costs operations, and a sample of steps says as much as all of them.

use crate::{Random, Result, Start, Upcoming, Window};

/// One step of each so many, drawn by seed.
///
/// Steps are cut into blocks of `one_in`, and of each block one step is drawn, with equal chances, as a function of
/// the run's seed and the block alone: a resumed run measures the same steps, and no rhythm of the data can hide
/// between them. The blocks are counted from the start of the run, and with [`Window::Period`] anew after every
/// reallocation. Before the first reallocation, and with [`Window::Period`] before every one, there is a measurement
/// however early it comes: a first block that it cuts short has its step drawn from what is left. Where that step's
/// update was left out, so that nothing was measured, the next step is taken for it.
#[derive(Clone, Debug)]
pub struct Sampled {
    one_in: u64,
    each_period: bool,
    seed: u64,
}

/// What no other use of a run's seed adds to it.
const SALT: u64 = 0x7361_6d70_6c65_6421;

impl Sampled {
    /// What [`takes`](Self::takes) most scorers do by default.
    pub const ONE_IN: u64 = 10;

    /// One step of each `one_in`; 1 takes all. An error for 0.
    pub fn new(one_in: u64, window: Window) -> Result<Self> {
        if one_in == 0 {
            return Err(
                "parameter `one_in` is 0, but must be at least 1, which measures every step".into(),
            );
        }
        Ok(Sampled {
            one_in,
            each_period: window == Window::Period,
            seed: 0,
        })
    }

    /// To be told of the run.
    pub fn start(&mut self, start: &Start) {
        self.seed = start.seed;
    }

    /// Whether the upcoming step is to be measured, where `last` is the step that was measured last
    /// ([`Accumulated::last`](crate::Accumulated::last)). Passes before the first step all are.
    pub fn takes(&self, upcoming: &Upcoming, last: Option<u64>) -> bool {
        let step = upcoming.step;
        if step == 0 {
            return true;
        }
        // The stretch of steps that is cut into blocks, those after `after`, and what the first of them must not miss.
        let previous = upcoming.previous_reallocation.filter(|step| *step > 0);
        let (after, until) = match (self.each_period, previous) {
            (true, previous) => (previous.unwrap_or(0), upcoming.next_reallocation),
            (false, None) => (0, upcoming.next_reallocation),
            (false, Some(_)) => (0, None),
        };
        let Some(into) = step.checked_sub(after + 1) else {
            return true;
        };
        let block = into / self.one_in;
        let drawn = |block: u64| {
            let begins = after + 1 + block * self.one_in;
            let steps = match until {
                Some(until) if block == 0 => self.one_in.min(until.saturating_sub(after)).max(1),
                _ => self.one_in,
            };
            let seed = (self.seed ^ SALT).wrapping_add(begins.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            begins + Random::new(seed).bits() % steps
        };
        // Left out, for a step that is measured says so.
        let missed = last.is_none_or(|last| last <= after) && step > drawn(0);
        step == drawn(block) || missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps that are measured in a run of so many with a reallocation after every `every`th.
    fn taken(one_in: u64, window: Window, seed: u64, total: u64, every: u64) -> Vec<u64> {
        taken_but(one_in, window, seed, total, every, &[])
    }

    /// The same where the updates of some steps are left out.
    fn taken_but(
        one_in: u64,
        window: Window,
        seed: u64,
        total: u64,
        every: u64,
        left_out: &[u64],
    ) -> Vec<u64> {
        let mut sampled = Sampled::new(one_in, window).unwrap();
        let mut start = Start::periodic(total, every);
        start.seed = seed;
        sampled.start(&start);
        let (mut taken, mut last) = (Vec::new(), None);
        for step in 1..=total {
            let previous = (step - 1) / every * every;
            let upcoming = Upcoming {
                step,
                total_steps: total,
                previous_reallocation: (previous > 0).then_some(previous),
                next_reallocation: Some(previous + every),
                ..Upcoming::default()
            };
            if previous == step - 1 && window == Window::Period {
                last = None;
            }
            if sampled.takes(&upcoming, last) {
                taken.push(step);
                if !left_out.contains(&step) {
                    last = Some(step);
                }
            }
        }
        taken
    }

    #[test]
    fn one_step_of_each_block_is_drawn_by_the_seed() {
        let steps = taken(10, Window::Run, 7, 1000, 50);
        assert_eq!(steps.len(), 100);
        for (block, step) in steps.iter().enumerate() {
            assert_eq!((step - 1) / 10, block as u64);
        }
        // Every place in a block comes up, about as often.
        let mut places = [0u64; 10];
        for seed in 0..50 {
            for step in taken(10, Window::Run, seed, 1000, 50) {
                places[(step as usize - 1) % 10] += 1;
            }
        }
        crate::testing::ChiSquare::new(places.map(|seen| (seen, 500.0))).assert_fits();
        assert_eq!(steps, taken(10, Window::Run, 7, 1000, 50));
        assert_ne!(steps, taken(10, Window::Run, 8, 1000, 50));
        assert_eq!(taken(1, Window::Run, 7, 9, 3), (1..=9).collect::<Vec<_>>());
        assert!(Sampled::new(0, Window::Run).is_err());
    }

    #[test]
    fn there_is_a_measurement_before_the_first_choice_and_in_every_period() {
        for seed in 0..200 {
            for every in [1, 3, 10, 25] {
                for window in [Window::Run, Window::Ema(0.9), Window::Period] {
                    let steps = taken(10, window, seed, 100, every);
                    let within = |from: u64, to: u64| {
                        steps
                            .iter()
                            .filter(|step| (from + 1..=to).contains(step))
                            .count()
                    };
                    assert!(within(0, every) >= 1, "{every}, {window:?}: {steps:?}");
                    let least = every.div_ceil(10).min(every);
                    for period in 0..100 / every {
                        let seen = within(period * every, (period + 1) * every);
                        assert!(window != Window::Period || seen >= 1, "{every}: {steps:?}");
                        assert!(seen as u64 <= least + 1, "{every}, {window:?}: {steps:?}");
                    }
                }
            }
        }
        // Short periods cost no more than the share that was asked for, but for the one step of the first.
        for seed in 0..50 {
            let steps = taken(10, Window::Run, seed, 1000, 2).len();
            assert!((100..=101).contains(&steps), "{steps}");
        }
    }

    #[test]
    fn a_step_whose_update_was_left_out_is_made_up_for() {
        let steps = taken(10, Window::Period, 3, 20, 20);
        let drawn = steps[0];
        let left_out: Vec<u64> = (drawn..drawn + 3).collect();
        let instead = taken_but(10, Window::Period, 3, 20, 20, &left_out);
        assert_eq!(instead[..4], [drawn, drawn + 1, drawn + 2, drawn + 3]);
        assert_eq!(instead.last(), steps.last());
    }
}
