//! What a run writes for other programs, as its recipe's `train.report_to` asks.

use super::record::{AllocationRecord, MetricRecord};
use super::scalars::Scalars;
use super::tensorboard::Events;
use super::{Opening, Run};
use crate::error::Result;
use crate::recipe::Reporter;

/// Those that are written for.
#[derive(Debug)]
pub(super) struct Reports {
    scalars: Scalars,
    tensorboard: Option<Events>,
}

impl Reports {
    /// For a run that is new, or goes on after step `from`: its logs are cut back to that. None if nobody is reported
    /// to. What the logs hold and is not written yet is written first.
    pub fn open(run: &Run, opening: &Opening, from: Option<u64>) -> Result<Option<Self>> {
        if opening.report_to.is_empty() {
            return Ok(None);
        }
        let chosen = run.allocations()?;
        let mut reports = Reports {
            scalars: Scalars::new(chosen.first().map_or(0, |first| first.modules.len())),
            tensorboard: None,
        };
        // Records of the step itself may have come after the checkpoint.
        let from = from.unwrap_or(0);
        if opening.report_to.has(Reporter::Tensorboard) {
            let folder = run.tensorboard_dir();
            let from = if Events::any(&folder)? { from } else { 0 };
            let mut events = Events::create(&folder, from)?;
            if from == 0 {
                events.text("recipe", format!("```toml\n{}```\n", opening.recipe))?;
            }
            for record in run.metrics()? {
                let (step, scalars) = reports.scalars.of(&record);
                if step >= from {
                    events.scalars(step, scalars)?;
                }
            }
            reports.tensorboard = Some(events);
        }
        Ok(Some(reports))
    }

    /// Reports a record of training or of an evaluation.
    pub fn metric(&mut self, record: &MetricRecord) -> Result<()> {
        let (step, scalars) = self.scalars.of(record);
        match &mut self.tensorboard {
            Some(events) => events.scalars(step, scalars),
            None => Ok(()),
        }
    }

    /// Learns from the first choice how many modules there are.
    pub fn allocation(&mut self, record: &AllocationRecord) {
        if !record.modules.is_empty() {
            self.scalars = Scalars::new(record.modules.len());
        }
    }
}
