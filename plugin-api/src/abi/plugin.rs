//! The plugin's half: an author's type behind the functions the host calls.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RResult;

use serde_json::Value as Json;

use super::field::{open, pour};
use super::{ANSWERED, API_VERSION, FAILED, Message, Root, RootFields, Sink, Table, UNKNOWN, text};
use crate::message::typed::{from_json, numbers_to_fields, to_json};
use crate::message::{Fields, Value};
use crate::parameters::example;
use crate::{
    AllocationRequest, Allocator, Error, Kind, Manifest, ModuleInfo, Needs, Observation, Plugin,
    Result, ScoreRequest, Scorer, Start, TrialRequest, Upcoming,
};

/// Exports types as the plugins of this library: `export_plugin!(scorer MyScorer);`,
/// `export_plugin!(allocator MyAllocator);` or, for both under one name,
/// `export_plugin!(scorer MyScorer, allocator MyAllocator);`, once per crate, at the end of its `lib.rs`.
///
/// A type implements [`Plugin`](crate::Plugin) and [`Scorer`](crate::Scorer) or
/// [`Allocator`](crate::Allocator), and the crate is built with `crate-type = ["cdylib"]` and with panics that
/// unwind: under `panic = "abort"` it does not compile, for a panic would take the trainer with it.
#[macro_export]
macro_rules! export_plugin {
    (scorer $plugin:ty) => {
        $crate::export_plugin!(@ "scorer", $plugin, ($crate::abi::plugin::ScorerSide<$plugin>,));
    };
    (allocator $plugin:ty) => {
        $crate::export_plugin!(@ "allocator", $plugin, ($crate::abi::plugin::AllocatorSide<$plugin>,));
    };
    (scorer $scorer:ty, allocator $allocator:ty) => {
        const _: () = assert!(
            $crate::abi::label::same(
                <$scorer as $crate::Plugin>::NAME,
                <$allocator as $crate::Plugin>::NAME,
            ),
            "the scorer and the allocator of one library have one NAME"
        );
        $crate::export_plugin!(@ "scorer allocator", $scorer, (
            $crate::abi::plugin::ScorerSide<$scorer>,
            $crate::abi::plugin::AllocatorSide<$allocator>,
        ));
    };
    (@ $kind:literal, $plugin:ty, $sides:ty) => {
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
                $crate::abi::plugin::root::<$sides>(env!("CARGO_PKG_VERSION"))
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
    // SAFETY: `root` is `export_plugin!`'s, which returns what `root` below made: a `Root`.
    unsafe { LibHeader::from_constructor::<Root>(root, CheckTypeLayout::Yes) }
}

#[doc(hidden)]
pub fn root<S: Sides>(version: &'static str) -> RootResult {
    let root = RootFields {
        version: version.into(),
        table: table::<S>(),
    };
    // SAFETY: `header` declares the module to be a `Root`, whose prefix this is.
    RResult::ROk(unsafe { root.leak_into_prefix().0.cast() })
}

/// What a library with these plugins exports, for tests that call it without a library.
pub fn table<S: Sides>() -> Table {
    Table {
        make: make::<S>,
        call: call::<S>,
        drop: end,
    }
}

/// The plugins of a library.
#[doc(hidden)]
pub trait Sides: 'static {
    /// The manifest of the plugin of this kind.
    fn describe(kind: &str) -> Result<Manifest>;
    /// An instance of the plugin of this kind.
    fn make(kind: &str, parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>>;
}

/// One plugin of a library.
#[doc(hidden)]
pub trait Side: 'static {
    const KIND: Kind;
    fn describe() -> Result<Manifest>;
    fn make(parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>>;
}

/// A scorer of a library.
#[doc(hidden)]
pub struct ScorerSide<S>(PhantomData<S>);
/// An allocator of a library.
#[doc(hidden)]
pub struct AllocatorSide<A>(PhantomData<A>);

impl<S: Plugin + Scorer + 'static> Side for ScorerSide<S> {
    const KIND: Kind = Kind::Scorer;

    fn describe() -> Result<Manifest> {
        Ok(described::<S>(Kind::Scorer, |schema| {
            default_needs(schema, S::needs)
        }))
    }

    fn make(parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>> {
        Ok(Box::new(OfScorer(construct::<S>(parameters, &modules)?)))
    }
}

impl<A: Plugin + Allocator + 'static> Side for AllocatorSide<A> {
    const KIND: Kind = Kind::Allocator;

    fn describe() -> Result<Manifest> {
        Ok(described::<A>(Kind::Allocator, |schema| {
            default_needs(schema, A::needs).filter(|needs| *needs != Needs::default())
        }))
    }

    fn make(parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>> {
        let plugin = construct::<A>(parameters, &modules)?;
        Ok(Box::new(OfAllocator(plugin, modules)))
    }
}

fn no_such<T>(kind: &str, has: &[Kind]) -> Result<T> {
    let has: Vec<String> = has.iter().map(Kind::to_string).collect();
    Err(format!(
        "it has no {kind}, but a plugin of the kind {}",
        has.join(" and ")
    )
    .into())
}

impl<X: Side> Sides for (X,) {
    fn describe(kind: &str) -> Result<Manifest> {
        match kind == X::KIND.to_string() {
            true => X::describe(),
            false => no_such(kind, &[X::KIND]),
        }
    }

    fn make(kind: &str, parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>> {
        match kind == X::KIND.to_string() {
            true => X::make(parameters, modules),
            false => no_such(kind, &[X::KIND]),
        }
    }
}

impl<X: Side, Y: Side> Sides for (X, Y) {
    fn describe(kind: &str) -> Result<Manifest> {
        match kind {
            kind if kind == X::KIND.to_string() => X::describe(),
            kind if kind == Y::KIND.to_string() => Y::describe(),
            kind => no_such(kind, &[X::KIND, Y::KIND]),
        }
    }

    fn make(kind: &str, parameters: &str, modules: Vec<ModuleInfo>) -> Result<Box<dyn Instance>> {
        match kind {
            kind if kind == X::KIND.to_string() => X::make(parameters, modules),
            kind if kind == Y::KIND.to_string() => Y::make(parameters, modules),
            kind => no_such(kind, &[X::KIND, Y::KIND]),
        }
    }
}

unsafe extern "C" fn make<S: Sides>(input: Message, out: Sink) -> *mut c_void {
    let made = guard(|| {
        // SAFETY: the host's message, which lives as long as this call.
        let fields = unsafe { open(input)? };
        let modules = from_json("modules", &fields)?;
        let parameters = fields.text("parameters")?.unwrap_or("{}");
        let instance = S::make(
            fields.text("kind")?.unwrap_or_default(),
            parameters,
            modules,
        )?;
        Ok(Box::into_raw(Box::new(Guarded::new(instance))).cast::<c_void>())
    });
    made.unwrap_or_else(|error| {
        refuse(&error, out);
        std::ptr::null_mut()
    })
}

unsafe extern "C" fn call<S: Sides>(
    instance: *mut c_void,
    name: *const u8,
    name_len: usize,
    input: Message,
    out: Sink,
) -> u32 {
    // SAFETY: the host's name, which is UTF-8 and lives as long as this call.
    let name = unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(name, name_len)) };
    let answer = match instance.is_null() {
        true => guard(|| {
            if name != "describe" {
                return Ok(None);
            }
            // SAFETY: the host's message, which lives as long as this call.
            let fields = unsafe { open(input)? };
            let manifest = S::describe(fields.text("kind")?.unwrap_or_default())?;
            Ok(Some(to_json("manifest", &manifest)?))
        }),
        false => {
            // SAFETY: what `make` above gave out and `end` has not taken back; the host calls one at a time.
            let instance = unsafe { &mut *instance.cast::<Guarded>() };
            // SAFETY: the host's message, which lives as long as this call.
            unsafe { open(input) }.and_then(|fields| instance.call(name, &fields))
        }
    };
    match answer {
        Ok(Some(fields)) => {
            pour(&fields, out);
            ANSWERED
        }
        Ok(None) => UNKNOWN,
        Err(error) => {
            refuse(&error, out);
            FAILED
        }
    }
}

unsafe extern "C" fn end(instance: *mut c_void) {
    // SAFETY: what `make` above gave out, once.
    let instance = unsafe { Box::from_raw(instance.cast::<Guarded>()) };
    // A panic in the author's own `Drop` would end the process at the boundary.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(instance)));
}

fn refuse(error: &Error, out: Sink) {
    let error = Value::Text(error.to_string().into());
    pour(&Fields::new().with("error", error), out);
}

/// What a plugin needs with default parameters, those that it requires made up from their schema: it can
/// depend on them. A panic here is the constructor's to report, when it is asked for in earnest.
fn default_needs<P: Plugin>(schema: &Json, needs: fn(&P) -> Needs) -> Option<Needs> {
    let needs = || {
        let plugin: P = construct(&example(schema).to_string(), &[ModuleInfo::example()])?;
        Ok(needs(&plugin))
    };
    guard(needs).ok()
}

fn described<P: Plugin>(kind: Kind, needs: fn(&Json) -> Option<Needs>) -> Manifest {
    let parameters = schemars::schema_for!(P::Parameters).to_value();
    Manifest {
        name: P::NAME.to_owned(),
        kind,
        version: String::new(),
        api_version: API_VERSION.to_owned(),
        description: P::DESCRIPTION.to_owned(),
        reference: P::REFERENCE.to_owned(),
        formula: P::FORMULA.to_owned(),
        needs: needs(&parameters),
        parameters,
    }
}

/// A plugin from its parameters as JSON, with an error that says which parameter is wrong.
pub fn construct<P: Plugin>(parameters: &str, modules: &[ModuleInfo]) -> Result<P> {
    let table: Json = serde_json::from_str(parameters)
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

thread_local! {
    /// Where the last panic in a guarded call was; none outside such calls.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
    /// How many guarded calls this thread is in.
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Runs an author's code so that a panic becomes an error with the panic's message and place, and is not printed
/// as well: the message may be of any length and hold anything.
pub fn guard<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
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
        Ok(answer) => answer,
        Err(panic) => {
            let place = PANICKED_AT.with(|at| at.borrow_mut().take());
            let place = place.map_or(String::new(), |place| format!(" at {place}"));
            let message = text::shown(panic_message(&*panic), text::LONGEST);
            Err(format!("it panicked{place}: {message}").into())
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

/// An author's plugin behind the calls that the host makes.
#[doc(hidden)]
pub trait Instance {
    /// The answer to a call; none where there is no such call.
    fn call<'a>(&'a mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'a>>>;
}

/// An instance that is asked nothing more once it has panicked: whatever it holds may be half-changed then, and a
/// checkpoint must not keep such a state.
struct Guarded {
    instance: Box<dyn Instance>,
    panicked: Option<Error>,
}

impl Guarded {
    fn new(instance: Box<dyn Instance>) -> Self {
        Guarded {
            instance,
            panicked: None,
        }
    }

    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        if let Some(error) = &self.panicked {
            return Err(error.clone());
        }
        let mut panicked = true;
        let answer = guard(|| {
            let answer = self.instance.call(name, fields);
            panicked = false;
            Ok(answer?.map(Fields::into_owned))
        });
        if panicked && let Err(error) = &answer {
            self.panicked = Some(error.clone());
        }
        answer
    }
}

struct OfScorer<S>(S);
struct OfAllocator<A>(A, Vec<ModuleInfo>);

/// The answer of a call that has nothing to say.
fn done<'a>() -> Result<Option<Fields<'a>>> {
    Ok(Some(Fields::new()))
}

fn state(bytes: Vec<u8>) -> Fields<'static> {
    Fields::new().with("state", Value::Bytes(bytes.into()))
}

impl<S: Scorer> Instance for OfScorer<S> {
    fn call<'a>(&'a mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'a>>> {
        let scorer = &mut self.0;
        Ok(Some(match name {
            "needs" => scorer.needs().to_fields()?,
            "start" => to_json("warnings", &scorer.start(&Start::from_fields(fields)?)?)?,
            "wants" => scorer.wants(&Upcoming::from_fields(fields)?).to_fields(),
            "observe" => {
                scorer.observe(&Observation::from_fields(fields)?)?;
                return done();
            }
            "trials" => scorer
                .trials(&TrialRequest::from_fields(fields)?)?
                .to_fields()?,
            "scores" => {
                let scores = scorer.scores(&ScoreRequest::from_fields(fields)?)?;
                Fields::new().with("scores", Value::F64s(scores.into()))
            }
            "numbers" => numbers_to_fields(&scorer.numbers()?).into_owned(),
            "reallocated" => {
                scorer.reallocated(&fields.bools("active")?.unwrap_or_default())?;
                return done();
            }
            "save" => state(scorer.save()?),
            "load" => {
                scorer.load(fields.bytes("state")?.unwrap_or_default())?;
                return done();
            }
            _ => return Ok(None),
        }))
    }
}

impl<A: Allocator> Instance for OfAllocator<A> {
    fn call<'a>(&'a mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'a>>> {
        let OfAllocator(allocator, modules) = self;
        Ok(Some(match name {
            "needs" => allocator.needs().to_fields()?,
            "start" => to_json("warnings", &allocator.start(&Start::from_fields(fields)?)?)?,
            "wants" => allocator.wants(&Upcoming::from_fields(fields)?).to_fields(),
            "observe" => {
                allocator.observe(&Observation::from_fields(fields)?)?;
                return done();
            }
            "trials" => allocator
                .trials(&TrialRequest::from_fields(fields)?)?
                .to_fields()?,
            "allocate" => {
                // Taken out and put back, so that a thousand descriptions are not copied for every choice.
                let request = AllocationRequest::from_fields(fields, std::mem::take(modules))?;
                let answer = allocator.allocate(&request);
                *modules = request.modules;
                answer?.to_fields().into_owned()
            }
            "numbers" => numbers_to_fields(&allocator.numbers()?).into_owned(),
            "save" => state(allocator.save()?),
            "load" => {
                allocator.load(fields.bytes("state")?.unwrap_or_default())?;
                return done();
            }
            _ => return Ok(None),
        }))
    }
}
