//! Trial passes: the loss on examples held back, with modules scaled or off, or with other components.

use dynalora_plugin_api::{Trial, TrialLosses, Trials};

use super::cost::Sizes;
use super::{Training, evaluate};
use crate::allocation::{TrialsAsked, TrialsMade};
use crate::data::{Encoded, drawn};
use crate::error::Result;
use crate::kernel::Kernels;

impl<B: Kernels> Training<'_, B> {
    /// Makes the trials that were asked for, the scorer's and the allocator's on the same examples.
    pub(super) fn make_trials(&mut self, asked: &TrialsAsked) -> Result<TrialsMade> {
        Ok(TrialsMade {
            scorer: self.losses(&asked.scorer, asked.seed)?,
            allocator: self.losses(&asked.allocator, asked.seed)?,
        })
    }

    /// The loss without change and with that of each trial; none where there is no trial.
    fn losses(&mut self, asked: &Trials, seed: u64) -> Result<Option<TrialLosses>> {
        if asked.trials.is_empty() {
            return Ok(None);
        }
        let all = &self.rest.data.held_back;
        let few;
        let examples = match asked.examples {
            0 => all,
            count => {
                few = all.select(&drawn(all.len(), count as usize, seed));
                &few
            }
        };
        let baseline = self.loss(examples, &Trial::default())?;
        let losses = asked.trials.iter().map(|trial| self.loss(examples, trial));
        let losses: Vec<f64> = losses.collect::<Result<_>>()?;
        let count = examples.len() as u64;
        let passes = 1 + losses.len() as u64;
        self.progress.flops += passes * self.forward_flops(examples);
        Ok(Some(TrialLosses::new(count, baseline, losses)))
    }

    fn loss(&self, examples: &Encoded, trial: &Trial) -> Result<f64> {
        let tokens = self.recipe.evaluation.batch_tokens;
        let ranks = self.ranks;
        evaluate::trial_loss(ranks, &self.trainee, examples, trial, tokens, self.device)
    }

    /// The operations of running `examples` forward.
    fn forward_flops(&self, examples: &Encoded) -> u64 {
        let mut sizes = Sizes::default();
        sizes.add(&examples.offsets);
        self.costs.step(&[], sizes, false, 0, Sizes::default())
    }
}
