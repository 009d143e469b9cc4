//! The plugin's half: an author's type behind the functions the host calls.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_trait::prelude::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString, RVec};

use serde_json::Value;

use super::{
    API_VERSION, AllocatorBox, AllocatorObject, AllocatorObject_TO, Answer, Make, ObservationView,
    Reply, RequestView, Root, RootFields, ScorerBox, ScorerObject, ScorerObject_TO, text,
};
use crate::parameters::example;
use crate::{
    Allocation, AllocationRequest, Allocator, Error, Kind, LedgerEntry, Manifest, Measured,
    ModuleInfo, Needs, Observation, Plugin, Raw, Result, Scorer, Start,
};

/// Exports a type as the plugin of this library: `export_plugin!(scorer MyScorer);` or
/// `export_plugin!(allocator MyAllocator);`, once per crate, at the end of its `lib.rs`.
///
/// The type implements [`Plugin`](crate::Plugin) and [`Scorer`](crate::Scorer) or
/// [`Allocator`](crate::Allocator), and the crate is built with `crate-type = ["cdylib"]` and with panics that
/// unwind: under `panic = "abort"` it does not compile, for a panic would take the trainer with it.
#[macro_export]
macro_rules! export_plugin {
    (scorer $plugin:ty) => {
        $crate::export_plugin!(@ scorer_root, "scorer", $plugin);
    };
    (allocator $plugin:ty) => {
        $crate::export_plugin!(@ allocator_root, "allocator", $plugin);
    };
    (@ $root:ident, $kind:literal, $plugin:ty) => {
        #[cfg(panic = "abort")]
        compile_error!(
            "a dynalora plugin must not be built with panic = \"abort\": a panic in it would end the trainer; \
             remove the key from the profile"
        );

        const _: () = {
            const LABEL: [&str; 12] = [
                "format=",
                $crate::abi::label::FORMAT,
                "\nname=",
                $crate::abi::label::word(<$plugin as $crate::Plugin>::NAME),
                concat!("\nkind=", $kind, "\nversion="),
                env!("CARGO_PKG_VERSION"),
                "\napi=",
                $crate::abi::API_VERSION,
                "\npanic=",
                if cfg!(panic = "unwind") { "unwind" } else { "abort" },
                "\n",
                "",
            ];

            // Exported, so that no linker leaves it out, and so that a library has one.
            #[used]
            #[unsafe(no_mangle)]
            pub static DYNALORA_PLUGIN_MANIFEST: [u8; $crate::abi::label::length(&LABEL)] =
                $crate::abi::label::bytes(&LABEL);

            extern "C" fn root() -> $crate::abi::plugin::RootResult {
                $crate::abi::plugin::$root::<$plugin>(env!("CARGO_PKG_VERSION"))
            }

            // The name abi_stable looks for, which has to be written out here: a test compares them.
            #[allow(non_upper_case_globals)]
            #[unsafe(no_mangle)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::abi::plugin::Header =
                $crate::abi::plugin::header(root);
        };
    };
}

#[doc(hidden)]
pub type RootResult = RootModuleResult;
#[doc(hidden)]
pub type Header = LibHeader;

#[doc(hidden)]
pub const fn header(root: extern "C" fn() -> RootResult) -> Header {
    // SAFETY: `root` is `export_plugin!`'s, which returns what `erased` below made: a `Root`.
    unsafe { LibHeader::from_constructor::<Root>(root, CheckTypeLayout::Yes) }
}

#[doc(hidden)]
pub fn scorer_root<S: Plugin + Scorer + 'static>(version: &'static str) -> RootResult {
    erased(local_scorer::<S>(version))
}

#[doc(hidden)]
pub fn allocator_root<A: Plugin + Allocator + 'static>(version: &'static str) -> RootResult {
    erased(local_allocator::<A>(version))
}

/// What a library with this scorer exports, for tests that call it without a library.
pub fn local_scorer<S: Plugin + Scorer + 'static>(version: &'static str) -> Root {
    let make = Make::Scorer(make_scorer::<S>);
    RootFields {
        version: version.into(),
        describe: describe_scorer::<S>,
        make,
    }
    .leak_into_prefix()
}

/// What a library with this allocator exports, for tests that call it without a library.
pub fn local_allocator<A: Plugin + Allocator + 'static>(version: &'static str) -> Root {
    let make = Make::Allocator(make_allocator::<A>);
    RootFields {
        version: version.into(),
        describe: describe_allocator::<A>,
        make,
    }
    .leak_into_prefix()
}

fn erased(root: Root) -> RootResult {
    // SAFETY: `header` declares the module to be a `Root`, whose prefix this is.
    RResult::ROk(unsafe { root.0.cast() })
}

extern "C" fn describe_scorer<S: Plugin + Scorer>() -> Reply<RString> {
    describe::<S>(Kind::Scorer, |schema| default_needs(schema, S::needs))
}

extern "C" fn describe_allocator<A: Plugin + Allocator>() -> Reply<RString> {
    describe::<A>(Kind::Allocator, |schema| {
        default_needs(schema, A::needs).filter(|needs| *needs != Needs::default())
    })
}

/// What a plugin needs with default parameters, those that it requires made up from their schema: it can
/// depend on them. A panic here is the constructor's to report, when it is asked for in earnest.
fn default_needs<P: Plugin>(schema: &Value, needs: fn(&P) -> Needs) -> Option<Needs> {
    let needs = || {
        let plugin: P = construct(&example(schema).to_string(), &[example_module()])?;
        Ok(needs(&plugin))
    };
    guard(needs).ok().into()
}

extern "C" fn make_scorer<S: Plugin + Scorer + 'static>(
    parameters: RStr<'_>,
    modules: RStr<'_>,
) -> Reply<ScorerBox> {
    guard(|| {
        let modules = read_modules(&modules)?;
        let instance = Instance::new(
            construct::<S>(&parameters, &modules)?,
            Observation::default(),
        );
        Ok(ScorerObject_TO::from_value(instance, TD_Opaque))
    })
}

extern "C" fn make_allocator<A: Plugin + Allocator + 'static>(
    parameters: RStr<'_>,
    modules: RStr<'_>,
) -> Reply<AllocatorBox> {
    guard(|| {
        let modules = read_modules(&modules)?;
        let plugin = construct::<A>(&parameters, &modules)?;
        let request = AllocationRequest {
            modules,
            scores: Vec::new(),
            ledger: Vec::new(),
            active: Vec::new(),
            ranks: Vec::new(),
            step: 0,
            total_steps: 0,
            reallocation: 0,
            seed: 0,
        };
        Ok(AllocatorObject_TO::from_value(
            Instance::new(plugin, (request, Observation::default())),
            TD_Opaque,
        ))
    })
}

fn describe<P: Plugin>(kind: Kind, needs: fn(&Value) -> Option<Needs>) -> Reply<RString> {
    guard(|| {
        let parameters = schemars::schema_for!(P::Parameters).to_value();
        let manifest = Manifest {
            name: P::NAME.to_owned(),
            kind,
            version: String::new(),
            api_version: API_VERSION.to_owned(),
            description: P::DESCRIPTION.to_owned(),
            reference: P::REFERENCE.to_owned(),
            needs: needs(&parameters),
            parameters,
        };
        match serde_json::to_string(&manifest) {
            Ok(json) => Ok(json.into()),
            Err(error) => Err(format!("its manifest cannot be written as JSON: {error}").into()),
        }
    })
}

/// A plugin from its parameters as JSON, with an error that says which parameter is wrong.
pub fn construct<P: Plugin>(parameters: &str, modules: &[ModuleInfo]) -> Result<P> {
    let table: Value = serde_json::from_str(parameters)
        .map_err(|error| format!("the parameters are not JSON: {error}"))?;
    // serde would read a list as the fields in order.
    if !table.is_object() {
        return Err(format!("the parameters are a table, but {table} was given").into());
    }
    let parameters = serde_path_to_error::deserialize(&table).map_err(|error| {
        let (path, cause) = (error.path().to_string(), error.inner());
        Error::from(match path.as_str() {
            "." => cause.to_string(),
            path => format!("parameter `{path}`: {cause}"),
        })
    })?;
    P::new(parameters, modules)
}

fn read_modules(json: &str) -> Result<Vec<ModuleInfo>> {
    serde_json::from_str(json)
        .map_err(|error| format!("the host's list of modules cannot be read: {error}").into())
}

fn example_module() -> ModuleInfo {
    ModuleInfo {
        path: "layer.0.query".into(),
        layer: Some(0),
        role: "query".into(),
        in_features: 8,
        out_features: 8,
        rank: 1,
        parameters: 16,
        forward_flops: 160,
        backward_flops: 320,
    }
}

thread_local! {
    /// Where the last panic in a guarded call was; none outside such calls.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
    /// How many guarded calls this thread is in.
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Runs an author's code so that a panic becomes an error with the panic's message and place, and is not printed
/// as well: the message may be of any length and hold anything.
pub fn guard<T>(call: impl FnOnce() -> Result<T>) -> Reply<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let printing = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match GUARDED.try_with(Cell::get) {
            Ok(depth) if depth > 0 => {
                let place = panic.location().map(ToString::to_string);
                PANICKED_AT.with(|at| *at.borrow_mut() = place);
            }
            _ => printing(panic),
        }));
    });
    GUARDED.with(|depth| depth.set(depth.get() + 1));
    let answer = catch_unwind(AssertUnwindSafe(call));
    GUARDED.with(|depth| depth.set(depth.get() - 1));
    match answer {
        Ok(Ok(answer)) => RResult::ROk(answer),
        Ok(Err(error)) => RResult::RErr(error.to_string().into()),
        Err(panic) => {
            let place = PANICKED_AT.with(|at| at.borrow_mut().take());
            let place = place.map_or(String::new(), |place| format!(" at {place}"));
            let message = text::shown(panic_message(&*panic), text::LONGEST);
            RResult::RErr(format!("it panicked{place}: {message}").into())
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// An author's plugin with the one request or observation that is filled anew for every call.
struct Instance<P, Q> {
    plugin: RefCell<Option<P>>,
    input: Q,
    /// Set by the first panic. Whatever the plugin holds may be half-changed then, so it is asked
    /// nothing more: a checkpoint must not keep such a state.
    panicked: RefCell<Option<RString>>,
}

impl<P, Q> Instance<P, Q> {
    fn new(plugin: P, input: Q) -> Self {
        Instance {
            plugin: RefCell::new(Some(plugin)),
            input,
            panicked: RefCell::new(None),
        }
    }

    fn call<T>(&self, call: impl FnOnce(&mut P, &Q) -> Result<T>) -> Reply<T> {
        if let Some(message) = &*self.panicked.borrow() {
            return RResult::RErr(message.clone());
        }
        let mut panicked = true;
        let reply = guard(|| {
            let mut plugin = self.plugin.borrow_mut();
            let plugin = plugin.as_mut().ok_or("the plugin is gone")?;
            let answer = call(plugin, &self.input);
            panicked = false;
            answer
        });
        if panicked && let RResult::RErr(message) = &reply {
            *self.panicked.borrow_mut() = Some(message.clone());
        }
        reply
    }
}

impl<P, Q> Drop for Instance<P, Q> {
    fn drop(&mut self) {
        // A panic in the author's own `Drop` would end the process at the boundary.
        let plugin = self.plugin.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(plugin)));
    }
}

impl<S: Scorer> ScorerObject for Instance<S, Observation> {
    fn needs(&self) -> Reply<RString> {
        self.call(|scorer, _| write_needs(&scorer.needs()))
    }

    fn start(&mut self, start: RStr<'_>) -> Reply<RVec<RString>> {
        self.call(|scorer, _| warnings(scorer.start(&read_start(&start)?)?))
    }

    fn wants_raw(&self, step: u64) -> Reply<bool> {
        self.call(|scorer, _| Ok(scorer.wants_raw(step)))
    }

    fn observe(&mut self, view: ObservationView<'_>) -> Reply<()> {
        receive(&mut self.input, view);
        self.call(|scorer, observation| scorer.observe(observation))
    }

    fn scores(&mut self) -> Reply<RVec<f64>> {
        self.call(|scorer, _| scorer.scores().map(RVec::from))
    }

    fn reallocated(&mut self) -> Reply<()> {
        self.call(|scorer, _| scorer.reallocated())
    }

    fn save(&self) -> Reply<RVec<u8>> {
        self.call(|scorer, _| scorer.save().map(RVec::from))
    }

    fn load(&mut self, state: RSlice<'_, u8>) -> Reply<()> {
        self.call(|scorer, _| scorer.load(state.as_slice()))
    }
}

impl<A: Allocator> AllocatorObject for Instance<A, (AllocationRequest, Observation)> {
    fn needs(&self) -> Reply<RString> {
        self.call(|allocator, _| write_needs(&allocator.needs()))
    }

    fn start(&mut self, start: RStr<'_>) -> Reply<RVec<RString>> {
        self.call(|allocator, _| warnings(allocator.start(&read_start(&start)?)?))
    }

    fn observe(&mut self, view: ObservationView<'_>) -> Reply<()> {
        receive(&mut self.input.1, view);
        self.call(|allocator, (_, observation)| allocator.observe(observation))
    }

    fn allocate(&mut self, view: RequestView<'_>) -> Reply<Answer> {
        let request = &mut self.input.0;
        refill(&mut request.scores, view.scores.iter().copied());
        refill(
            &mut request.ledger,
            view.ledger.iter().map(|entry| LedgerEntry {
                steps_active: entry.steps_active,
                times_chosen: entry.times_chosen,
                last_chosen: entry.last_chosen.into(),
            }),
        );
        refill(&mut request.active, view.active.iter().copied());
        refill(&mut request.ranks, view.ranks.iter().copied());
        request.step = view.step;
        request.total_steps = view.total_steps;
        request.reallocation = view.reallocation;
        request.seed = view.seed;
        self.call(|allocator, (request, _)| {
            let Allocation { active, components } = allocator.allocate(request)?;
            let components =
                components.map(|modules| modules.into_iter().map(RVec::from).collect());
            Ok(Answer {
                active: active.into(),
                components: ROption::from(components),
            })
        })
    }

    fn save(&self) -> Reply<RVec<u8>> {
        self.call(|allocator, _| allocator.save().map(RVec::from))
    }

    fn load(&mut self, state: RSlice<'_, u8>) -> Reply<()> {
        self.call(|allocator, _| allocator.load(state.as_slice()))
    }
}

fn read_start(json: &str) -> Result<Start> {
    serde_json::from_str(json)
        .map_err(|error| format!("the host's account of the run cannot be read: {error}").into())
}

fn warnings(sentences: Vec<String>) -> Result<RVec<RString>> {
    Ok(sentences.into_iter().map(RString::from).collect())
}

fn write_needs(needs: &Needs) -> Result<RString> {
    match serde_json::to_string(needs) {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(error.to_string().into()),
    }
}

/// Fills `observation` anew with what crossed.
fn receive(observation: &mut Observation, view: ObservationView<'_>) {
    observation.step = view.step;
    observation.tokens = view.tokens;
    refill(&mut observation.active, view.active.iter().copied());
    observation
        .signals
        .resize_with(view.signals.len(), || Measured {
            signal: crate::Signal::ActivationL2,
            values: Vec::new(),
        });
    for (measured, view) in observation.signals.iter_mut().zip(view.signals.iter()) {
        measured.signal = view.signal;
        refill(
            &mut measured.values,
            view.values.iter().map(|v| Some(*v).filter(|v| !v.is_nan())),
        );
    }
    observation.raw = view
        .raw
        .iter()
        .map(|raw| Raw {
            value: raw.value,
            buffers: raw.buffers.iter().map(|buffer| buffer.to_vec()).collect(),
        })
        .collect();
    observation
        .components
        .resize_with(view.components.len(), Vec::new);
    for (module, view) in observation
        .components
        .iter_mut()
        .zip(view.components.iter())
    {
        refill(module, view.iter().copied());
    }
}

/// Replaces what is in `buffer`, in the memory it has.
fn refill<T>(buffer: &mut Vec<T>, values: impl Iterator<Item = T>) {
    buffer.clear();
    buffer.extend(values);
}
