//! The plugin `process`, a scorer and an allocator: a command of your own, in any language, over its pipes.
//!
//! ```toml
//! [scorer]
//! plugin = "process"
//! command = ["python3", "my_scorer.py"]
//! parameters = { window = 50 }
//! ```
//!
//! The command is started once and gets one line of JSON for each call on its standard input, and answers each with
//! one line on its standard output. The lines are plugin-api's messages ([`dynalora_plugin_api::message::json`]), the
//! very ones that a library gets, under the names of the methods of `Scorer` and `Allocator`:
//!
//! ```text
//! > {"call":"make","kind":"scorer","parameters":{"window":50},"modules":[{"path":"encoder.layer.0.…","rank":8,…},…]}
//! < {"ok":true}
//! > {"call":"needs"}
//! < {"ok":true,"needs":{"signals":["activation_l2"]}}
//! > {"call":"wants","step":1,"total_steps":360,"probing":false,"next_reallocation":20}
//! < {"unknown":true}
//! > {"call":"observe","moment":"step","step":1,"loss":2.1,"active":[true,…],"signals.activation_l2":[0.5,null,…],…}
//! < {"ok":true}
//! > {"call":"scores","step":20,"reallocation":0,"seed":…,"active":[…],"ranks":[…],…}
//! < {"ok":true,"scores":[1.5,…]}
//! ```
//!
//! `{"unknown":true}` is the answer to a call that it does not have, which is then as if it gave its default and is
//! not made again; `{"error":"…"}` ends the run with that sentence. A scorer must know `needs` and `scores`, an
//! allocator `allocate`. One that keeps a state answers `save` with `{"ok":true,"state":{"base64":"…"}}` and is given
//! it back by `load`.
//!
//! What it writes to standard error is passed on. One that does not answer within `timeout_seconds` is killed; that,
//! its end and a line that is no answer are errors, with the command, the exit code and its last words. It is in a
//! process group of its own, so that an interrupt at the terminal does not end it before the trainer has saved its
//! state, and it ends with the plugin: its standard input is closed, and a second later it is killed.
//!
//! `examples/` has a scorer and an allocator in Python, of about thirty lines each.

mod child;

use std::collections::BTreeMap;

use dynalora_plugin_api::abi::host::{Carrier, RemoteAllocator, RemoteScorer};
use dynalora_plugin_api::message::Value;
use dynalora_plugin_api::message::typed::to_json;
use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Kind, ModuleInfo, Needs, Numbers, Observation,
    Plugin, Result, ScoreRequest, Scorer, Start, TrialRequest, Trials, Upcoming, Wants,
    export_plugin,
};

use child::Child;

/// Parameters of `process`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// The program and its arguments, such as ["python3", "my_scorer.py"].
    command: Vec<String>,
    /// Handed to it in its first call, `make`, as they are.
    #[serde(default)]
    parameters: BTreeMap<String, serde_json::Value>,
    /// The longest that any answer may take, its start included; above 0.
    #[serde(default = "a_minute")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    timeout_seconds: f64,
    /// The folder it runs in; by default where the trainer runs.
    #[serde(default)]
    cwd: Option<String>,
    /// Environment variables, beside the trainer's own.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

fn a_minute() -> f64 {
    60.0
}

/// Starts the command and has it make its plugin.
fn start(parameters: &Parameters, kind: Kind, modules: &[ModuleInfo]) -> Result<Box<dyn Carrier>> {
    let mut child = Child::start(parameters)?;
    let mut fields = to_json("parameters", &parameters.parameters)?;
    fields.put("kind", Value::Text(kind.to_string().into()));
    fields.append(to_json("modules", &modules)?);
    match child.call("make", &fields)? {
        Some(answer) => answer.only(&[])?,
        None => return Err(format!("{} does not know the call `make`", child.name()).into()),
    }
    Ok(Box::new(child))
}

const NAME: &str = "process";
const REFERENCE: &str = "docs/plugins.md: the messages of plugin-api as lines of JSON";

/// The scorer.
pub struct ProcessScorer(RemoteScorer);

impl Plugin for ProcessScorer {
    type Parameters = Parameters;

    const NAME: &'static str = NAME;
    const DESCRIPTION: &'static str =
        "Asks a command of your own for scores, with a line of JSON for each call.";
    const REFERENCE: &'static str = REFERENCE;

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let carrier = start(&parameters, Kind::Scorer, modules)?;
        RemoteScorer::new(carrier).map(ProcessScorer)
    }
}

impl Scorer for ProcessScorer {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.0.start(start)
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        self.0.wants(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.0.observe(observation)
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.0.trials(request)
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        self.0.scores(request)
    }

    fn numbers(&self) -> Result<Numbers> {
        self.0.numbers()
    }

    fn reallocated(&mut self, active: &[bool]) -> Result<()> {
        self.0.reallocated(active)
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.0.save()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.0.load(state)
    }
}

/// The allocator.
pub struct ProcessAllocator(RemoteAllocator);

impl Plugin for ProcessAllocator {
    type Parameters = Parameters;

    const NAME: &'static str = NAME;
    const DESCRIPTION: &'static str =
        "Asks a command of your own which modules train, with a line of JSON for each call.";
    const REFERENCE: &'static str = REFERENCE;

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let carrier = start(&parameters, Kind::Allocator, modules)?;
        RemoteAllocator::new(carrier, modules).map(ProcessAllocator)
    }
}

impl Allocator for ProcessAllocator {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.0.start(start)
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        self.0.wants(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.0.observe(observation)
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.0.trials(request)
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        self.0.allocate(request)
    }

    fn numbers(&self) -> Result<Numbers> {
        self.0.numbers()
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.0.save()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.0.load(state)
    }
}

export_plugin!(scorer ProcessScorer, allocator ProcessAllocator);

#[cfg(test)]
mod tests;
