//! The host's half: a plugin behind a carrier as a plain [`Scorer`] or [`Allocator`].

use std::ffi::c_void;

use super::{ANSWERED, FAILED, Table, UNKNOWN, collect, lend, text};
use crate::message::typed::{from_json, numbers_from_fields, to_json};
use crate::message::{Fields, Value};
use crate::{
    Allocation, AllocationRequest, Allocator, Error, Kind, Manifest, ModuleInfo, Needs, Numbers,
    Observation, Result, ScoreRequest, Scorer, Start, TrialRequest, Trials, Upcoming, Wants,
};

/// The longest manifest taken, in bytes of JSON.
const LONGEST_MANIFEST: usize = 1 << 20;

/// What takes calls to a plugin: a library's table, or a child's pipes. Its errors are fit to be shown
/// ([`text::shown`]).
pub trait Carrier: Send {
    /// The answer to a call; none where the plugin knows no such call.
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>>;
}

impl<C: Carrier + ?Sized> Carrier for Box<C> {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        (**self).call(name, fields)
    }
}

/// The manifest of a library's plugin of this kind; `version` is its crate's, which the library says elsewhere.
pub fn manifest(table: Table, kind: Kind, version: &str) -> Result<Manifest> {
    let kind = Fields::new().with("kind", Value::Text(kind.to_string().into()));
    let answer = called(table, std::ptr::null_mut(), "describe", &kind)?;
    read_manifest(&answer.unwrap_or_default(), version)
}

/// The manifest in an answer to `describe`.
pub fn read_manifest(answer: &Fields<'_>, version: &str) -> Result<Manifest> {
    let length = answer.text("manifest")?.map_or(0, str::len);
    if length > LONGEST_MANIFEST {
        return Err(format!(
            "its manifest is of {length} bytes: a megabyte is the most there may be"
        )
        .into());
    }
    let manifest: Manifest = from_json("manifest", answer).map_err(|error| {
        Error::from(text::shown(
            &format!("its manifest: {error}"),
            text::LONGEST,
        ))
    })?;
    Ok(Manifest {
        name: text::line(&manifest.name, 200),
        kind: manifest.kind,
        version: text::line(version, 200),
        api_version: text::line(&manifest.api_version, 200),
        description: text::shown(&manifest.description, text::LONGEST),
        reference: text::shown(&manifest.reference, text::LONGEST),
        formula: text::shown(&manifest.formula, text::LONGEST),
        needs: manifest.needs,
        parameters: text::json(manifest.parameters),
    })
}

/// An instance of a plugin in a library that is loaded into this process.
pub struct InProcess {
    table: Table,
    instance: *mut c_void,
}

// SAFETY: a plugin is a `Scorer` or an `Allocator`, which are `Send`; a library in another language is told so. The
// instance is called through `&mut` alone.
unsafe impl Send for InProcess {}

impl InProcess {
    /// Makes one of this kind over `modules`, with `parameters` as a JSON object.
    pub fn new(table: Table, kind: Kind, parameters: &str, modules: &[ModuleInfo]) -> Result<Self> {
        let mut fields = to_json("modules", &modules)?;
        fields.put("kind", Value::Text(kind.to_string().into()));
        fields.put("parameters", Value::Json(parameters.to_owned().into()));
        // SAFETY: a plugin's table, and a message and a sink that live as long as the call.
        let (instance, answer) =
            collect(|out| lend(&fields, |input| unsafe { (table.make)(input, out) }));
        match instance.is_null() {
            true => Err(refusal(&answer?)),
            false => Ok(InProcess { table, instance }),
        }
    }
}

impl Carrier for InProcess {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        called(self.table, self.instance, name, fields)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        // SAFETY: what the table's `make` gave, ended once.
        unsafe { (self.table.drop)(self.instance) }
    }
}

fn called(
    table: Table,
    instance: *mut c_void,
    name: &str,
    fields: &Fields<'_>,
) -> Result<Option<Fields<'static>>> {
    let call = |out| {
        // SAFETY: a plugin's table with an instance of its own or none, and a name, a message and a sink that live
        // as long as the call.
        lend(fields, |input| unsafe {
            (table.call)(instance, name.as_ptr(), name.len(), input, out)
        })
    };
    match collect(call) {
        (ANSWERED, answer) => answer.map(Some),
        (FAILED, answer) => Err(refusal(&answer?)),
        (UNKNOWN, _) => Ok(None),
        (code, _) => {
            Err(format!("it answered `{name}` with the code {code}, which nobody knows").into())
        }
    }
}

/// What a plugin says of a call that failed.
fn refusal(answer: &Fields<'_>) -> Error {
    let why = answer.text("error").ok().flatten();
    text::shown(why.unwrap_or("it gave no reason"), text::LONGEST).into()
}

/// What a carrier makes of a plugin's instance, whichever kind it is of.
struct Remote {
    carrier: std::cell::RefCell<Box<dyn Carrier>>,
    needs: Needs,
}

impl Remote {
    fn new(mut carrier: Box<dyn Carrier>) -> Result<Self> {
        let answer = carrier.call("needs", &Fields::new())?;
        let needs = match answer {
            Some(answer) => Needs::from_fields(&answer)?,
            None => Needs::default(),
        };
        Ok(Remote {
            carrier: carrier.into(),
            needs,
        })
    }

    /// A call that a plugin may leave out.
    fn call(&self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        self.carrier.borrow_mut().call(name, fields)
    }

    /// A call that a plugin may leave out, whose answer says nothing.
    fn tell(&self, name: &str, fields: &Fields<'_>) -> Result<()> {
        match self.call(name, fields)? {
            Some(answer) => answer.only(&[]),
            None => Ok(()),
        }
    }

    /// A call that every plugin has to know.
    fn ask(&self, name: &str, fields: &Fields<'_>) -> Result<Fields<'static>> {
        let answer = self.call(name, fields)?;
        answer.ok_or_else(|| format!("it does not know the call `{name}`").into())
    }

    /// A plugin's warnings, no more of them than anyone reads.
    fn start(&self, start: &Start) -> Result<Vec<String>> {
        let Some(answer) = self.call("start", &start.to_fields()?)? else {
            return Ok(Vec::new());
        };
        answer.only(&["warnings"])?;
        let warnings: Vec<String> = match answer.get("warnings") {
            Some(_) => from_json("warnings", &answer)?,
            None => Vec::new(),
        };
        let warnings = warnings.iter().take(20);
        Ok(warnings
            .map(|warning| text::shown(warning, text::LONGEST))
            .collect())
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        if !self.needs.observes() {
            return Wants::NOTHING;
        }
        // A plugin that fails here fails at the observation that follows.
        match self.call("wants", &upcoming.to_fields()) {
            Ok(Some(answer)) => Wants::from_fields(&answer).unwrap_or(Wants::ALL),
            Ok(None) | Err(_) => Wants::ALL,
        }
    }

    fn trials(&self, request: &TrialRequest) -> Result<Trials> {
        if self.needs.held_back == 0 {
            return Ok(Trials::default());
        }
        match self.call("trials", &request.to_fields())? {
            Some(answer) => Trials::from_fields(&answer),
            None => Ok(Trials::default()),
        }
    }

    fn numbers(&self) -> Result<Numbers> {
        match self.call("numbers", &Fields::new())? {
            Some(answer) => numbers_from_fields(&answer),
            None => Ok(Numbers::new()),
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        let Some(answer) = self.call("save", &Fields::new())? else {
            return Ok(Vec::new());
        };
        answer.only(&["state"])?;
        Ok(answer.bytes("state")?.unwrap_or_default().to_vec())
    }

    fn load(&self, bytes: &[u8]) -> Result<()> {
        let state = Fields::new().with("state", Value::Bytes(bytes.into()));
        match self.call("load", &state)? {
            Some(answer) => answer.only(&[]),
            None if bytes.is_empty() => Ok(()),
            None => Err("it keeps no state, but was given some".into()),
        }
    }
}

/// A scorer behind a carrier.
pub struct RemoteScorer(Remote);

impl RemoteScorer {
    /// The scorer that answers at the other end of `carrier`.
    pub fn new(carrier: Box<dyn Carrier>) -> Result<Self> {
        Remote::new(carrier).map(RemoteScorer)
    }

    /// Makes one in a loaded library over `modules`, with `parameters` as a JSON object.
    pub fn in_process(table: Table, parameters: &str, modules: &[ModuleInfo]) -> Result<Self> {
        let instance = InProcess::new(table, Kind::Scorer, parameters, modules)?;
        RemoteScorer::new(Box::new(instance))
    }
}

impl Scorer for RemoteScorer {
    fn needs(&self) -> Needs {
        self.0.needs.clone()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.0.start(start)
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        self.0.wants(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.0.tell("observe", &observation.to_fields())
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.0.trials(request)
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        let answer = self.0.ask("scores", &request.to_fields())?;
        answer.only(&["scores"])?;
        answer.need("scores")?;
        Ok(answer.f64s("scores")?.unwrap_or_default())
    }

    fn numbers(&self) -> Result<Numbers> {
        self.0.numbers()
    }

    fn reallocated(&mut self, active: &[bool]) -> Result<()> {
        let active = Fields::new().with("active", Value::Bools(active.into()));
        self.0.tell("reallocated", &active)
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.0.save()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.0.load(state)
    }
}

/// An allocator behind a carrier.
pub struct RemoteAllocator {
    remote: Remote,
    modules: Vec<ModuleInfo>,
}

impl RemoteAllocator {
    /// The allocator that answers at the other end of `carrier`, made over `modules`.
    pub fn new(carrier: Box<dyn Carrier>, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(RemoteAllocator {
            remote: Remote::new(carrier)?,
            modules: modules.to_vec(),
        })
    }

    /// Makes one in a loaded library over `modules`, with `parameters` as a JSON object.
    pub fn in_process(table: Table, parameters: &str, modules: &[ModuleInfo]) -> Result<Self> {
        let instance = InProcess::new(table, Kind::Allocator, parameters, modules)?;
        RemoteAllocator::new(Box::new(instance), modules)
    }
}

impl Allocator for RemoteAllocator {
    fn needs(&self) -> Needs {
        self.remote.needs.clone()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.remote.start(start)
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        self.remote.wants(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.remote.tell("observe", &observation.to_fields())
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.remote.trials(request)
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        // The modules crossed when the allocator was made and are not sent again.
        if request.modules != self.modules {
            return Err("the request's modules are not the ones the allocator was made for".into());
        }
        Allocation::from_fields(&self.remote.ask("allocate", &request.to_fields())?)
    }

    fn numbers(&self) -> Result<Numbers> {
        self.remote.numbers()
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.remote.save()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.remote.load(state)
    }
}
