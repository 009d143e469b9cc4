//! The host's half: a plugin in another library as a plain [`Scorer`] or [`Allocator`].

use abi_stable::std_types::{ROption, RResult, RSlice, RString, RVec};

use super::{
    AllocatorBox, EntryView, Make, ObservationView, RawView, Reply, RequestView, Root, ScorerBox,
    SignalView, text,
};
use crate::{
    Allocation, AllocationRequest, Allocator, Kind, LedgerEntry, Manifest, ModuleInfo, Needs,
    Observation, Result, Scorer, Start,
};

/// The longest manifest taken, in bytes of JSON.
const LONGEST_MANIFEST: usize = 1 << 20;

/// The manifest of a loaded library's plugin.
pub fn manifest(root: Root) -> Result<Manifest> {
    let json = answer(root.describe()())?;
    if json.len() > LONGEST_MANIFEST {
        return Err(format!(
            "its manifest is of {} bytes: a megabyte is the most there may be",
            json.len()
        )
        .into());
    }
    let manifest: Manifest = serde_json::from_str(&json)
        .map_err(|error| unreadable("its manifest cannot be read", error))?;
    Ok(Manifest {
        name: text::line(&manifest.name, 200),
        kind: manifest.kind,
        version: text::line(root.version().as_str(), 200),
        api_version: text::line(&manifest.api_version, 200),
        description: text::shown(&manifest.description, text::LONGEST),
        reference: text::shown(&manifest.reference, text::LONGEST),
        needs: manifest.needs,
        parameters: text::json(manifest.parameters),
    })
}

/// A scorer in another library.
pub struct RemoteScorer {
    scorer: ScorerBox,
    needs: Needs,
    /// One buffer per signal, filled anew at every step.
    values: Vec<Vec<f32>>,
}

impl RemoteScorer {
    /// Makes one over `modules`, with `parameters` as a JSON object.
    pub fn new(root: Root, parameters: &str, modules: &[ModuleInfo]) -> Result<Self> {
        let Make::Scorer(make) = root.make() else {
            return Err(not_a(Kind::Scorer));
        };
        let scorer = answer(make(
            parameters.into(),
            write_modules(modules)?.as_str().into(),
        ))?;
        Ok(RemoteScorer {
            needs: read_needs(scorer.needs())?,
            scorer,
            values: Vec::new(),
        })
    }
}

impl Scorer for RemoteScorer {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        warnings(self.scorer.start(write_start(start)?.as_str().into()))
    }

    fn wants_raw(&self, step: u64) -> bool {
        // A plugin that panics here says so at the observation that follows.
        !self.needs.raw.is_empty() && answer(self.scorer.wants_raw(step)).unwrap_or(false)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let RemoteScorer { scorer, values, .. } = self;
        send(observation, values, |view| scorer.observe(view))
    }

    fn scores(&mut self) -> Result<Vec<f64>> {
        answer(self.scorer.scores()).map(Vec::from)
    }

    fn reallocated(&mut self) -> Result<()> {
        answer(self.scorer.reallocated())
    }

    fn save(&self) -> Result<Vec<u8>> {
        answer(self.scorer.save()).map(Vec::from)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        answer(self.scorer.load(state.into()))
    }
}

/// An allocator in another library.
pub struct RemoteAllocator {
    allocator: AllocatorBox,
    modules: Vec<ModuleInfo>,
    needs: Needs,
    /// Filled anew at every call.
    ledger: Vec<EntryView>,
    /// As a [`RemoteScorer`]'s.
    values: Vec<Vec<f32>>,
}

impl RemoteAllocator {
    /// Makes one over `modules`, with `parameters` as a JSON object.
    pub fn new(root: Root, parameters: &str, modules: &[ModuleInfo]) -> Result<Self> {
        let Make::Allocator(make) = root.make() else {
            return Err(not_a(Kind::Allocator));
        };
        let allocator = answer(make(
            parameters.into(),
            write_modules(modules)?.as_str().into(),
        ))?;
        Ok(RemoteAllocator {
            needs: read_needs(allocator.needs())?,
            allocator,
            modules: modules.to_vec(),
            ledger: Vec::new(),
            values: Vec::new(),
        })
    }
}

impl Allocator for RemoteAllocator {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        warnings(self.allocator.start(write_start(start)?.as_str().into()))
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let RemoteAllocator {
            allocator, values, ..
        } = self;
        send(observation, values, |view| allocator.observe(view))
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        // The modules crossed when the allocator was made and are not sent again.
        if request.modules != self.modules {
            return Err("the request's modules are not the ones the allocator was made for".into());
        }
        self.ledger.clear();
        self.ledger.extend(request.ledger.iter().map(|entry| {
            let LedgerEntry {
                steps_active,
                times_chosen,
                last_chosen,
            } = *entry;
            EntryView {
                steps_active,
                times_chosen,
                last_chosen: ROption::from(last_chosen),
            }
        }));
        let chosen = answer(self.allocator.allocate(RequestView {
            scores: request.scores.as_slice().into(),
            ledger: self.ledger.as_slice().into(),
            active: request.active.as_slice().into(),
            ranks: request.ranks.as_slice().into(),
            step: request.step,
            total_steps: request.total_steps,
            reallocation: request.reallocation,
            seed: request.seed,
        }))?;
        Ok(Allocation {
            active: chosen.active.into(),
            components: chosen
                .components
                .into_option()
                .map(|modules| modules.into_iter().map(Vec::from).collect()),
        })
    }

    fn save(&self) -> Result<Vec<u8>> {
        answer(self.allocator.save()).map(Vec::from)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        answer(self.allocator.load(state.into()))
    }
}

/// Hands an observation over; `values` is memory for one buffer per signal, filled anew.
fn send(
    observation: &Observation,
    values: &mut Vec<Vec<f32>>,
    to: impl FnOnce(ObservationView<'_>) -> Reply<()>,
) -> Result<()> {
    values.resize_with(observation.signals.len(), Vec::new);
    for (values, measured) in values.iter_mut().zip(&observation.signals) {
        values.clear();
        values.extend(
            measured
                .values
                .iter()
                .map(|value| value.unwrap_or(f32::NAN)),
        );
    }
    let signals: Vec<SignalView<'_>> = observation
        .signals
        .iter()
        .zip(&*values)
        .map(|(measured, values)| SignalView {
            signal: measured.signal,
            values: values.as_slice().into(),
        })
        .collect();
    let buffers: Vec<Vec<RSlice<'_, f32>>> = observation
        .raw
        .iter()
        .map(|raw| slices(&raw.buffers))
        .collect();
    let raw: Vec<RawView<'_>> = observation
        .raw
        .iter()
        .zip(&buffers)
        .map(|(raw, buffers)| RawView {
            value: raw.value,
            buffers: buffers.as_slice().into(),
        })
        .collect();
    answer(to(ObservationView {
        step: observation.step,
        tokens: observation.tokens,
        active: observation.active.as_slice().into(),
        signals: signals.as_slice().into(),
        raw: raw.as_slice().into(),
        components: slices(&observation.components).as_slice().into(),
    }))
}

fn slices(buffers: &[Vec<f32>]) -> Vec<RSlice<'_, f32>> {
    buffers
        .iter()
        .map(|buffer| buffer.as_slice().into())
        .collect()
}

fn read_needs(reply: Reply<RString>) -> Result<Needs> {
    serde_json::from_str(&answer(reply)?)
        .map_err(|error| unreadable("what it needs cannot be read", error))
}

fn write_start(start: &Start) -> Result<String> {
    serde_json::to_string(start)
        .map_err(|error| format!("the run cannot be written as JSON: {error}").into())
}

/// A plugin's warnings, no more of them than anyone reads.
fn warnings(reply: Reply<RVec<RString>>) -> Result<Vec<String>> {
    let warnings = answer(reply)?;
    Ok(warnings
        .iter()
        .take(20)
        .map(|warning| text::shown(warning, text::LONGEST))
        .collect())
}

/// What serde says can quote what it read.
fn unreadable(what: &str, error: serde_json::Error) -> crate::Error {
    text::shown(&format!("{what}: {error}"), text::LONGEST).into()
}

fn answer<T>(reply: Reply<T>) -> Result<T> {
    match reply {
        RResult::ROk(answer) => Ok(answer),
        RResult::RErr(message) => Err(text::shown(&message, text::LONGEST).into()),
    }
}

fn not_a(kind: Kind) -> crate::Error {
    let other = match kind {
        Kind::Scorer => "it is an allocator, not a scorer",
        Kind::Allocator => "it is a scorer, not an allocator",
    };
    other.into()
}

fn write_modules(modules: &[ModuleInfo]) -> Result<String> {
    serde_json::to_string(modules)
        .map_err(|error| format!("the modules cannot be written as JSON: {error}").into())
}
