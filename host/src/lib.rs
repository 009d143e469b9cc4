//! The host of dynalora: Dynamic Low-Rank Module Allocation on burn.
//!
//! Imports point one way: `cli → {sweep, report, watch, train} → {allocation, model, data, run, export} → adapter → kernel`.
//! `plugin` is the only module that knows that plugins are dynamic libraries.

pub mod adapter;
pub mod allocation;
pub mod cache;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod export;
pub mod file;
pub mod hub;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod number;
pub mod plugin;
pub mod recipe;
pub mod report;
pub mod run;
pub mod sweep;
pub mod train;
pub mod trained;
pub mod watch;
mod yaml;
