//! `train.report_to`: what records are written for beside the run's own files.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// A program that shows runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reporter {
    /// Event files in the run's folder `tensorboard`.
    Tensorboard,
    /// MLflow's file store: the folder that `MLFLOW_TRACKING_URI` names, else `mlruns` beside the run's folder.
    Mlflow,
}

/// Programs that show runs, one or a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReportTo(
    /// In the recipe's order.
    pub Vec<Reporter>,
);

impl ReportTo {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is among them.
    pub fn has(&self, reporter: Reporter) -> bool {
        self.0.contains(&reporter)
    }
}

impl<'de> Deserialize<'de> for ReportTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany)
    }
}

struct OneOrMany;

impl<'de> de::Visitor<'de> for OneOrMany {
    type Value = ReportTo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"tensorboard\", \"mlflow\", or a list")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ReportTo, E> {
        Ok(ReportTo(vec![Reporter::deserialize(
            text.into_deserializer(),
        )?]))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<ReportTo, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element()? {
            all.push(one);
        }
        Ok(ReportTo(all))
    }
}

impl JsonSchema for ReportTo {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ReportTo".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "enum": ["tensorboard", "mlflow"] },
                { "type": "array", "items": { "enum": ["tensorboard", "mlflow"] } },
            ],
        })
    }
}
