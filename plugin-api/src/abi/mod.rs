//! The binary boundary between the host and a plugin that was compiled by itself.
//!
//! A plugin author needs nothing of this: [`export_plugin!`](crate::export_plugin) makes the plugin's
//! half ([`plugin`]), the host's loader uses the other ([`host`]), and both halves see plain
//! [`Scorer`](crate::Scorer)s and [`Allocator`](crate::Allocator)s.
//!
//! What crosses: per-step numbers as slices, a missing measurement as NaN; what crosses once
//! (manifest, parameters, modules) as JSON. abi_stable compares the layout of everything declared
//! here, recursively, when the library is loaded. A panic never crosses: every entry catches it and
//! answers with an error, and texts are cut and stripped of control characters before anyone sees them
//! ([`text`]). What a lookup needs can be read from a library's file without running any of it ([`label`]).

// Much of this module is written by abi_stable's macros.
#![allow(
    missing_docs,
    non_local_definitions,
    clippy::undocumented_unsafe_blocks
)]

pub mod host;
pub mod label;
pub mod plugin;
#[cfg(test)]
mod tests;
pub mod text;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, ROption, RResult, RSlice, RStr, RString, RVec};

use crate::{RawValue, Signal};

/// The version of this crate that both sides must share in its first two numbers.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The symbol a plugin exports, which is how a library is known to be one before it is loaded.
pub const SYMBOL: &str = abi_stable::library::ROOT_MODULE_LOADER_NAME;

/// An answer, or the sentence that says why there is none.
pub type Reply<T> = RResult<T, RString>;

/// What a plugin library exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Root)))]
pub struct RootFields {
    /// The version of the plugin's crate.
    pub version: RStr<'static>,
    /// The manifest as JSON, without the version.
    pub describe: extern "C" fn() -> Reply<RString>,
    /// The constructor, which also says what kind of plugin this is.
    #[sabi(last_prefix_field)]
    pub make: Make,
}

/// Makes an instance from parameters (a JSON object) and modules (a JSON array of
/// [`ModuleInfo`](crate::ModuleInfo)).
#[repr(u8)]
#[derive(StableAbi, Clone, Copy)]
pub enum Make {
    Scorer(extern "C" fn(RStr<'_>, RStr<'_>) -> Reply<ScorerBox>),
    Allocator(extern "C" fn(RStr<'_>, RStr<'_>) -> Reply<AllocatorBox>),
}

impl RootModule for Root {
    abi_stable::declare_root_module_statics! {Root}
    const BASE_NAME: &'static str = "dynalora_plugin";
    const NAME: &'static str = "dynalora plugin";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

/// A scorer on the plugin's side.
pub type ScorerBox = ScorerObject_TO<'static, RBox<()>>;
/// An allocator on the plugin's side.
pub type AllocatorBox = AllocatorObject_TO<'static, RBox<()>>;

/// [`Scorer`](crate::Scorer), as it crosses. `needs` answers in JSON, `start` takes it.
#[sabi_trait]
pub trait ScorerObject: Send {
    fn needs(&self) -> Reply<RString>;
    fn start(&mut self, start: RStr<'_>) -> Reply<RVec<RString>>;
    fn wants_raw(&self, step: u64) -> Reply<bool>;
    fn observe(&mut self, observation: ObservationView<'_>) -> Reply<()>;
    fn scores(&mut self) -> Reply<RVec<f64>>;
    fn reallocated(&mut self) -> Reply<()>;
    fn save(&self) -> Reply<RVec<u8>>;
    #[sabi(last_prefix_field)]
    fn load(&mut self, state: RSlice<'_, u8>) -> Reply<()>;
}

/// [`Allocator`](crate::Allocator), as it crosses. `needs` answers in JSON, `start` takes it.
#[sabi_trait]
pub trait AllocatorObject: Send {
    fn needs(&self) -> Reply<RString>;
    fn start(&mut self, start: RStr<'_>) -> Reply<RVec<RString>>;
    fn observe(&mut self, observation: ObservationView<'_>) -> Reply<()>;
    fn allocate(&mut self, request: RequestView<'_>) -> Reply<Answer>;
    fn save(&self) -> Reply<RVec<u8>>;
    #[sabi(last_prefix_field)]
    fn load(&mut self, state: RSlice<'_, u8>) -> Reply<()>;
}

/// [`Observation`](crate::Observation), as it crosses.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct ObservationView<'a> {
    pub step: u64,
    pub tokens: u64,
    pub active: RSlice<'a, bool>,
    pub signals: RSlice<'a, SignalView<'a>>,
    pub raw: RSlice<'a, RawView<'a>>,
    pub components: RSlice<'a, RSlice<'a, f32>>,
}

/// [`Measured`](crate::Measured), as it crosses: NaN where there was nothing to measure.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct SignalView<'a> {
    pub signal: Signal,
    pub values: RSlice<'a, f32>,
}

/// [`Raw`](crate::Raw), as it crosses.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawView<'a> {
    pub value: RawValue,
    pub buffers: RSlice<'a, RSlice<'a, f32>>,
}

/// [`AllocationRequest`](crate::AllocationRequest), as it crosses; the modules are the ones the
/// allocator was made for.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RequestView<'a> {
    pub scores: RSlice<'a, f64>,
    pub ledger: RSlice<'a, EntryView>,
    pub active: RSlice<'a, bool>,
    pub ranks: RSlice<'a, u32>,
    pub step: u64,
    pub total_steps: u64,
    pub reallocation: u64,
    pub seed: u64,
}

/// [`LedgerEntry`](crate::LedgerEntry), as it crosses.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct EntryView {
    pub steps_active: u64,
    pub times_chosen: u64,
    pub last_chosen: ROption<u64>,
}

/// [`Allocation`](crate::Allocation), as it crosses.
#[repr(C)]
#[derive(StableAbi)]
pub struct Answer {
    pub active: RVec<bool>,
    pub components: ROption<RVec<RVec<bool>>>,
}
