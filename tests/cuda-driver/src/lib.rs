//! Stands in for CUDA where there is no device, so that everything up to the device can be tested: under the name of
//! the driver's library, `libcuda.so`, it offers the calls that burn makes of it, and under that of the run-time
//! compiler, `libnvrtc.so`, it hands everything to the real one.
//!
//! - Memory is addresses that nothing lies behind, each given out once, so that what was freed is never live again.
//! - A launch computes nothing. What a driver would refuse of it, or crash over, is a fault: a parameter that is no live
//!   address, a block or grid beyond the device's limits, more shared memory than it has.
//! - Everything that is read is the float 1.
//! - What was called, how often, and what was wrong with it is written as JSON when the process ends.
//!
//! The process is told by its environment what to do: see the constants.

#![allow(non_snake_case)]

mod compiler;
mod driver;
mod ptx;
mod state;

/// The device to be: `sm_80`, an A100, or `sm_90`, an H100.
const DEVICE: &str = "DYNALORA_CUDA_DEVICE";
/// The file that the account goes to. Without it none is written.
const REPORT: &str = "DYNALORA_CUDA_REPORT";
/// The real run-time compiler.
const COMPILER: &str = "DYNALORA_CUDA_COMPILER";
/// A folder to keep what was compiled in, for other processes of the same test.
const CACHE: &str = "DYNALORA_CUDA_CACHE";
/// A part of a kernel's source: what has it is given to the compiler with a mistake in it.
const SPOIL: &str = "DYNALORA_CUDA_SPOIL";
