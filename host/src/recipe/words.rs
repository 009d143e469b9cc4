//! Small value types of the recipe that are written as a word or a number.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where a run computes. A GPU without an index is the first, 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU where a usable one exists, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// Vulkan's adapter of this index.
    Vulkan(usize),
    /// Metal's adapter of this index.
    Metal(usize),
    /// The adapter of this index among those of all of the system's interfaces.
    WebGpu(usize),
}

/// A GPU of this index.
type Gpu = fn(usize) -> Device;

/// The GPUs by the word that stands before the index.
const GPUS: [(&str, Gpu); 4] = [
    ("cuda", Device::Cuda),
    ("vulkan", Device::Vulkan),
    ("metal", Device::Metal),
    ("webgpu", Device::WebGpu),
];

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Vulkan(index) => write!(f, "vulkan:{index}"),
            Device::Metal(index) => write!(f, "metal:{index}"),
            Device::WebGpu(index) => write!(f, "webgpu:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Device::Auto),
            "cpu" => return Ok(Device::Cpu),
            _ => {}
        }
        let (word, index) = match text.split_once(':') {
            Some((word, index)) => (word, index.parse().ok()),
            None => (text, Some(0)),
        };
        let gpu = GPUS.iter().find(|(name, _)| *name == word);
        match (gpu, index) {
            (Some((_, device)), Some(index)) => Ok(device(index)),
            _ => Err(format!(
                "there is no device \"{text}\": give auto, cpu, cuda, vulkan, metal or webgpu, these four also with an \
                 index, as in cuda:1"
            )),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for Device {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(auto|cpu|(cuda|vulkan|metal|webgpu)(:[0-9]+)?)$" })
    }
}

/// How often something is done during training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Every {
    /// After each pass over the training data, and at the end of the run.
    #[default]
    Epoch,
    /// After each so many optimiser steps (at least 1), and at the end of the run.
    Steps(u64),
    /// Only at the end of the run.
    Never,
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Every::Epoch => serializer.serialize_str("epoch"),
            Every::Steps(steps) => serializer.serialize_u64(*steps),
            Every::Never => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EveryVisitor)
    }
}

struct EveryVisitor;

impl de::Visitor<'_> for EveryVisitor {
    type Value = Every;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"epoch\", \"never\" or a number of steps, at least 1")
    }

    fn visit_i64<E: de::Error>(self, steps: i64) -> Result<Every, E> {
        match u64::try_from(steps) {
            Ok(steps) if steps > 0 => Ok(Every::Steps(steps)),
            _ => Err(E::invalid_value(de::Unexpected::Signed(steps), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Every, E> {
        match word {
            "epoch" => Ok(Every::Epoch),
            "never" => Ok(Every::Never),
            _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
        }
    }
}

impl JsonSchema for Every {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Every".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [{ "enum": ["epoch", "never"] }, { "type": "integer", "minimum": 1 }],
        })
    }
}
