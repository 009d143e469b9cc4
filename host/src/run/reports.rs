//! What a run writes for other programs, as its recipe's `train.report_to` asks.

use super::mlflow::{self, Tracked};
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
    mlflow: Option<Tracked>,
}

/// Refuses what cannot be written for, before anything starts.
pub(super) fn check(run: &Run, opening: &Opening) -> Result<()> {
    match opening.report_to.has(Reporter::Mlflow) {
        true => mlflow::store(run).map(|_| ()),
        false => Ok(()),
    }
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
            mlflow: None,
        };
        // Records of the step itself may have come after the checkpoint.
        let mut from = from.unwrap_or(0);
        if opening.report_to.has(Reporter::Tensorboard) {
            let folder = run.tensorboard_dir();
            from = if Events::any(&folder)? { from } else { 0 };
            let mut events = Events::create(&folder, from)?;
            if from == 0 {
                events.text("recipe", format!("```toml\n{}```\n", opening.recipe))?;
            }
            reports.tensorboard = Some(events);
        }
        if opening.report_to.has(Reporter::Mlflow) {
            let store = mlflow::store(run)?;
            reports.mlflow = Some(Tracked::open(&store, run, &opening.recipe)?);
        }
        for record in run.metrics()? {
            reports.write(&record, from)?;
        }
        Ok(Some(reports))
    }

    /// Reports a record of training or of an evaluation.
    pub fn metric(&mut self, record: &MetricRecord) -> Result<()> {
        self.write(record, 0)
    }

    /// Reports a record; to TensorBoard, whose files are never written anew, one of step `from` or later.
    fn write(&mut self, record: &MetricRecord, from: u64) -> Result<()> {
        let (step, scalars) = self.scalars.of(record);
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.scalars(record, step, &scalars)?;
        }
        match &mut self.tensorboard {
            Some(events) if step >= from => events.scalars(step, scalars),
            _ => Ok(()),
        }
    }

    /// Reports that the last step has been made.
    pub fn finish(&mut self) -> Result<()> {
        self.mlflow.as_mut().map_or(Ok(()), Tracked::finish)
    }

    /// Learns from the first choice how many modules there are.
    pub fn allocation(&mut self, record: &AllocationRecord) {
        if !record.modules.is_empty() {
            self.scalars = Scalars::new(record.modules.len());
        }
    }
}
