//! The binary boundary between the host and a plugin that was compiled by itself.
//!
//! A plugin author needs nothing of this: [`export_plugin!`](crate::export_plugin) makes the plugin's
//! half ([`plugin`]), the host's loader uses the other ([`host`]), and both halves see plain
//! [`Scorer`](crate::Scorer)s and [`Allocator`](crate::Allocator)s.
//!
//! What is fixed is small: a table of three functions, and how a field of a message lies in memory. abi_stable
//! compares the layout of both when a library is loaded. Everything else is names in messages
//! ([`message`](crate::message)), which can grow. A library in another language exports the same table under a
//! plain symbol ([`TABLE_SYMBOL`]), as `include/dynalora_plugin.h` declares it.
//!
//! A panic never crosses: every entry catches it and answers with an error, and texts are cut and stripped of
//! control characters before anyone sees them ([`text`]). What a lookup needs can be read from a library's file
//! without running any of it ([`label`]).

// Much of this module is written by abi_stable's macros.
#![allow(
    missing_docs,
    non_local_definitions,
    clippy::undocumented_unsafe_blocks
)]

mod field;
pub mod host;
pub mod label;
pub mod plugin;
#[cfg(test)]
mod tests;
pub mod text;

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::RStr;

pub use field::{collect, lend};

/// The version of this crate, whose first number both sides must share.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The symbol a Rust plugin exports, under which abi_stable finds the root.
pub const SYMBOL: &str = abi_stable::library::ROOT_MODULE_LOADER_NAME;

/// The symbol under which a plugin in another language exports its [`Table`].
pub const TABLE_SYMBOL: &str = "dynalora_plugin_table";

/// What a Rust plugin's library exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Root)))]
pub struct RootFields {
    /// The version of the plugin's crate.
    pub version: RStr<'static>,
    /// Its functions.
    #[sabi(last_prefix_field)]
    pub table: Table,
}

impl RootModule for Root {
    abi_stable::declare_root_module_statics! {Root}
    const BASE_NAME: &'static str = "dynalora_plugin";
    const NAME: &'static str = "dynalora plugin";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

/// The functions of a plugin's library.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Table {
    /// Makes an instance from the fields `kind` (`scorer` or `allocator`), `parameters`, `modules` and
    /// `count`, how many modules they are; null where
    /// that fails, with the sentence in the field `error`.
    pub make: unsafe extern "C" fn(input: Message, out: Sink) -> *mut c_void,
    /// Calls an instance, or the library itself where `instance` is null (`describe`, with the field `kind`).
    /// The answer is one of [`ANSWERED`], [`FAILED`], [`UNKNOWN`].
    pub call: unsafe extern "C" fn(
        instance: *mut c_void,
        name: *const u8,
        name_len: usize,
        input: Message,
        out: Sink,
    ) -> u32,
    /// Ends an instance.
    pub drop: unsafe extern "C" fn(instance: *mut c_void),
}

/// The call was answered; the answer's fields are in the sink.
pub const ANSWERED: u32 = 0;
/// The call failed; the sentence is in the sink's field `error`.
pub const FAILED: u32 = 1;
/// There is no such call, which is as if it gave its default.
pub const UNKNOWN: u32 = 2;

/// The fields of a message, for as long as a call lasts.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Message {
    /// The first field.
    pub fields: *const Field,
    /// How many there are.
    pub len: usize,
}

/// A value under a name.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Field {
    /// The name in UTF-8.
    pub name: *const u8,
    /// Its bytes.
    pub name_len: usize,
    /// What lies at `data`: one of the constants in [`kind`].
    pub kind: u32,
    /// The values, aligned as their type wants it.
    pub data: *const c_void,
    /// How many they are; 1 for a single value.
    pub len: usize,
}

/// What lies at a field's `data`.
pub mod kind {
    /// UTF-8.
    pub const TEXT: u32 = 1;
    /// UTF-8 that is JSON.
    pub const JSON: u32 = 2;
    /// Bytes.
    pub const BYTES: u32 = 3;
    /// `float`s, NaN where one is missing.
    pub const F32S: u32 = 4;
    /// `double`s, NaN where one is missing.
    pub const F64S: u32 = 5;
    /// `uint64_t`s.
    pub const U64S: u32 = 6;
    /// `uint8_t`s, 0 or 1.
    pub const BOOLS: u32 = 7;
    /// One `double`.
    pub const REAL: u32 = 8;
    /// One `uint64_t`.
    pub const INT: u32 = 9;
    /// One `uint8_t`, 0 or 1.
    pub const FLAG: u32 = 10;
}

/// Where an answer's fields go, one call of `put` each; it copies what it is given.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Sink {
    /// Handed back to `put`.
    pub context: *mut c_void,
    /// Takes one field.
    pub put: unsafe extern "C" fn(context: *mut c_void, field: *const Field),
}
