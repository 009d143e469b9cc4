//! What the driver knows, and the account of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use serde::Serialize;

use crate::ptx::Entry;

/// What happened in a process. What is counted is counted from its start.
#[derive(Default, Serialize)]
pub struct Report {
    /// Launches of each kernel.
    pub launches: BTreeMap<String, u64>,
    /// Copies to the device, by their size in bytes, but for those of the next line.
    pub uploads: BTreeMap<usize, u64>,
    /// Copies to the device that cubecl makes for a launch by itself, of the shapes of what it gets.
    pub shapes: u64,
    /// Copies to the host.
    pub reads: u64,
    /// How often the host waited for the device.
    pub waits: u64,
    /// Device memory in use, the most there was of it, and how often some was asked for.
    pub live: u64,
    pub peak: u64,
    pub allocations: u64,
    /// Host memory of the driver's in use.
    pub host_live: u64,
    /// Events that are there.
    pub events: u64,
    /// Modules that were loaded: one a kernel.
    pub modules: u64,
    /// Kernels that the run-time compiler compiled, and those of them that another process had compiled before.
    pub compiled: u64,
    pub cached: u64,
    /// Those of them that round to tf32.
    pub tf32: u64,
    /// For which architectures.
    pub architectures: BTreeSet<String>,
    /// What it said of those it did not compile.
    pub refused: Vec<String>,
    /// Calls that a driver refuses, or crashes over.
    pub faults: Vec<String>,
    /// The seconds that compiling took.
    pub compile_seconds: f64,
}

/// A device that can be stood in for.
pub struct Device {
    pub name: &'static str,
    pub capability: [i32; 2],
    pub multiprocessors: i32,
    /// Of a block, with what it opts into.
    pub shared_memory: i32,
    pub memory: u64,
}

const DEVICES: [(&str, Device); 2] = [
    (
        "sm_80",
        Device {
            name: "stands in for an A100",
            capability: [8, 0],
            multiprocessors: 108,
            shared_memory: 163 << 10,
            memory: 80 << 30,
        },
    ),
    (
        "sm_90",
        Device {
            name: "stands in for an H100",
            capability: [9, 0],
            multiprocessors: 132,
            shared_memory: 227 << 10,
            memory: 80 << 30,
        },
    ),
];

/// The device that the environment names.
pub fn device() -> &'static Device {
    let name = std::env::var(crate::DEVICE).unwrap_or_else(|_| "sm_80".to_owned());
    let named = DEVICES.iter().find(|(device, _)| *device == name);
    &named
        .unwrap_or_else(|| panic!("{}: no device {name:?}", crate::DEVICE))
        .1
}

/// A kernel that was loaded, and what it may take of shared memory.
pub struct Function {
    pub entry: Entry,
    pub shared_memory: i32,
}

#[derive(Default)]
pub struct State {
    pub report: Report,
    /// Allocations on the device, by their first address.
    pub memory: BTreeMap<u64, u64>,
    /// Allocations of the driver's on the host, with their sizes.
    pub host_memory: BTreeMap<usize, usize>,
    pub modules: Vec<Vec<Entry>>,
    pub functions: Vec<Function>,
    pub events: BTreeSet<usize>,
    /// Where the latest copy to the device went, and its size, as long as nothing else was done.
    pub uploaded: Option<(u64, usize)>,
    next_address: u64,
    next_handle: usize,
}

impl State {
    /// A handle that nobody has had.
    pub fn handle(&mut self) -> usize {
        self.next_handle += 1;
        self.next_handle
    }

    /// Memory on the device, or none where there is not so much.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        if self.report.live + size > device().memory {
            return None;
        }
        // No address that a pointer of the host's could be. What CUDA gives out is aligned to 256 bytes, and to 512
        // where it can.
        let address = (1 << 56) + self.next_address;
        self.next_address += (size.max(1)).next_multiple_of(512) + 512;
        self.memory.insert(address, size);
        self.report.allocations += 1;
        self.report.live += size;
        self.report.peak = self.report.peak.max(self.report.live);
        Some(address)
    }

    pub fn free(&mut self, address: u64) -> bool {
        let size = self.memory.remove(&address);
        self.report.live -= size.unwrap_or_default();
        size.is_some()
    }

    /// Whether so many bytes from an address on are live.
    pub fn is_live(&self, address: u64, bytes: u64) -> bool {
        let before = self.memory.range(..=address).next_back();
        before.is_some_and(|(start, size)| address + bytes <= start + size)
    }

    /// Notes what a driver would not have let pass; no more of them than somebody reads.
    pub fn fault(&mut self, what: String) {
        if self.report.faults.len() < 20 {
            self.report.faults.push(what);
        }
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The state, and nobody else's meanwhile.
pub fn with<R>(run: impl FnOnce(&mut State) -> R) -> R {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        stay();
        // SAFETY: the function is of this library, which stays.
        unsafe { libc::atexit(write) };
    });
    let mut state: MutexGuard<'_, Option<State>> =
        STATE.lock().unwrap_or_else(PoisonError::into_inner);
    run(state.get_or_insert_default())
}

/// Has the library stay when who has loaded it lets go of it, as a driver does.
fn stay() {
    // SAFETY: an address of this library, and a place for what is known of it; its name ends with a zero.
    unsafe {
        let mut about: libc::Dl_info = std::mem::zeroed();
        let known = libc::dladdr(write as *const () as *const _, &raw mut about);
        assert!(known != 0, "the library knows its own name");
        libc::dlopen(about.dli_fname, libc::RTLD_LAZY | libc::RTLD_NODELETE);
    }
}

/// Writes the account. Other threads may still call: what they do from now on is not in it.
extern "C" fn write() {
    let Some(path) = std::env::var_os(crate::REPORT) else {
        return;
    };
    with(|state| {
        state.report.events = state.events.len() as u64;
        state.report.host_live = state.host_memory.values().sum::<usize>() as u64;
        let text = serde_json::to_vec(&state.report).expect("plain data");
        std::fs::write(&path, text).expect("the account can be written");
    });
}
