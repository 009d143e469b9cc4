//! The driver's calls, with the signatures of `cuda.h`.

use std::alloc::Layout;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::ptx::{self, Parameter};
use crate::state::{Function, State, device, with};

type Status = c_uint;

const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const NOT_FOUND: Status = 500;

/// Notes a fault, and is the status that goes with it.
fn refused(state: &mut State, what: String) -> Status {
    state.fault(what);
    INVALID_VALUE
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Status {
    with(|_| SUCCESS)
}

/// The run-time compiler asks for the driver's cache of what was compiled, and does without.
#[unsafe(no_mangle)]
extern "C" fn cuGetExportTable(_table: *mut *const c_void, _name: *const [u8; 16]) -> Status {
    NOT_FOUND
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's to write to, as in all that follow.
    unsafe { version.write(13_000) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { count.write(1) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(found: *mut c_int, ordinal: c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { found.write(ordinal) };
    if ordinal == 0 { SUCCESS } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> Status {
    let text = device().name.as_bytes();
    let count = text.len().min(len.max(1) as usize - 1);
    // SAFETY: the caller's, `len` bytes of it.
    unsafe {
        name.copy_from_nonoverlapping(text.as_ptr().cast(), count);
        name.add(count).write(0);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { bytes.write(device().memory as usize) };
    SUCCESS
}

/// What a device of this century can do of a block and a grid.
const BLOCK: [u32; 3] = [1024, 1024, 64];
const GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
const THREADS: u32 = 1024;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    _device: c_int,
) -> Status {
    let found = match attribute {
        1 => THREADS as c_int,
        2..=4 => BLOCK[attribute as usize - 2] as c_int,
        5..=7 => GRID[attribute as usize - 5] as c_int,
        // Threads of a warp.
        10 => 32,
        16 => device().multiprocessors,
        75 | 76 => device().capability[attribute as usize - 75],
        97 => device().shared_memory,
        // Whether memory can be allocated in a stream.
        115 => 1,
        _ => return with(|state| refused(state, format!("attribute {attribute} is not known"))),
    };
    // SAFETY: the caller's.
    unsafe { value.write(found) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, _device: c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { context.write(1) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(_context: usize) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut usize, _flags: c_uint) -> Status {
    // SAFETY: the caller's.
    unsafe { stream.write(with(State::handle)) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_stream: usize) -> Status {
    with(|state| state.report.waits += 1);
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(_stream: usize, event: usize, _flags: c_uint) -> Status {
    of_event(event, |_| ())
}

/// What is done with an event, which must be there.
fn of_event(event: usize, run: impl FnOnce(&mut State)) -> Status {
    with(|state| {
        if !state.events.contains(&event) {
            return refused(state, format!("there is no event {event}"));
        }
        run(state);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> Status {
    with(|state| {
        let handle = state.handle();
        state.events.insert(handle);
        // SAFETY: the caller's.
        unsafe { event.write(handle) };
    });
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, _stream: usize) -> Status {
    of_event(event, |_| ())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> Status {
    of_event(event, |state| state.report.waits += 1)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> Status {
    of_event(event, |state| {
        state.events.remove(&event);
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, size: usize) -> Status {
    with(|state| match state.allocate(size as u64) {
        // A driver refuses it too.
        Some(_) if size == 0 => refused(state, "memory of no size was asked for".to_owned()),
        Some(found) => {
            // SAFETY: the caller's.
            unsafe { address.write(found) };
            SUCCESS
        }
        None => OUT_OF_MEMORY,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, size: usize, _stream: usize) -> Status {
    // SAFETY: the caller's.
    unsafe { cuMemAlloc_v2(address, size) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Status {
    with(|state| match state.free(address) {
        true => SUCCESS,
        false => refused(state, format!("{address:#x}, which is freed, is not live")),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, _stream: usize) -> Status {
    cuMemFree_v2(address)
}

/// Of pages.
fn layout(size: usize) -> Layout {
    Layout::from_size_align(size.max(1), 4096).expect("a size that there can be")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(address: *mut *mut u8, size: usize) -> Status {
    // SAFETY: a layout of some size, and the caller's to write to.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout(size));
        with(|state| state.host_memory.insert(memory as usize, size));
        address.write(memory);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(address: *mut u8) -> Status {
    with(
        |state| match state.host_memory.remove(&(address as usize)) {
            Some(size) => {
                // SAFETY: it was allocated above, with this layout.
                unsafe { std::alloc::dealloc(address, layout(size)) };
                SUCCESS
            }
            None => refused(
                state,
                "host memory is freed that is not the driver's".to_owned(),
            ),
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    _from: *const u8,
    bytes: usize,
    _stream: usize,
) -> Status {
    uploaded(to, bytes, bytes)
}

/// Notes a copy of so many bytes to the device, where they take up `span`.
fn uploaded(to: u64, bytes: usize, span: usize) -> Status {
    with(|state| {
        *state.report.uploads.entry(bytes).or_default() += 1;
        state.uploaded = Some((to, bytes));
        match state.is_live(to, span as u64) {
            true => SUCCESS,
            false => refused(
                state,
                format!("{span} bytes are copied to {to:#x}, which are not live"),
            ),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut u8,
    from: u64,
    bytes: usize,
    _stream: usize,
) -> Status {
    // SAFETY: the caller's.
    unsafe { ones(to, bytes) };
    was_read(from, bytes)
}

/// Writes the float 1 so often as there is room for it.
///
/// # Safety
/// So many bytes are there to write to.
unsafe fn ones(to: *mut u8, bytes: usize) {
    for (at, byte) in (0..bytes).zip(1f32.to_le_bytes().iter().cycle()) {
        // SAFETY: as the function's.
        unsafe { to.add(at).write(*byte) };
    }
}

/// Notes a copy to the host of what takes up `span` bytes.
fn was_read(from: u64, span: usize) -> Status {
    with(|state| {
        state.report.reads += 1;
        match state.is_live(from, span as u64) {
            true => SUCCESS,
            false => refused(
                state,
                format!("{span} bytes are read from {from:#x}, which are not live"),
            ),
        }
    })
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
struct Copy2d {
    from_x: usize,
    from_y: usize,
    from_kind: c_uint,
    from_host: *const u8,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: c_uint,
    to_host: *mut u8,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Copy2d, _stream: usize) -> Status {
    const HOST: c_uint = 1;
    const DEVICE: c_uint = 2;
    // SAFETY: the caller's.
    let copy = unsafe { &*copy };
    let span = |pitch: usize| match copy.height {
        0 => 0,
        rows => (rows - 1) * pitch + copy.width,
    };
    if copy.width > copy.from_pitch || copy.width > copy.to_pitch {
        return with(|state| refused(state, "rows of a copy lie in one another".to_owned()));
    }
    match (copy.from_kind, copy.to_kind) {
        (HOST, DEVICE) => uploaded(
            copy.to_device,
            copy.width * copy.height,
            span(copy.to_pitch),
        ),
        (DEVICE, HOST) => {
            for row in 0..copy.height {
                // SAFETY: the caller's rows.
                unsafe { ones(copy.to_host.add(row * copy.to_pitch), copy.width) };
            }
            was_read(copy.from_device, span(copy.from_pitch))
        }
        kinds => with(|state| refused(state, format!("a copy of the kinds {kinds:?}"))),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_char) -> Status {
    // SAFETY: PTX, which ends with a zero.
    let image = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    let entries = ptx::entries(&image);
    with(|state| {
        if entries.is_empty() {
            return refused(state, "a module has no kernel".to_owned());
        }
        state.report.modules += 1;
        state.modules.push(entries);
        // SAFETY: the caller's.
        unsafe { module.write(state.modules.len()) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut usize,
    module: usize,
    name: *const c_char,
) -> Status {
    // SAFETY: a name, which ends with a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    with(|state| {
        let entries = state.modules.get(module - 1).into_iter().flatten();
        let Some(entry) = entries
            .into_iter()
            .find(|entry| entry.name == name)
            .cloned()
        else {
            state.fault(format!("a module has no kernel {name}"));
            return NOT_FOUND;
        };
        state.functions.push(Function {
            entry,
            // Without opting into more.
            shared_memory: 48 << 10,
        });
        // SAFETY: the caller's.
        unsafe { function.write(state.functions.len()) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Status {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    with(|state| {
        if attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || value > device().shared_memory {
            let what = format!("attribute {attribute} of a kernel is set to {value}");
            return refused(state, what);
        }
        state.functions[function - 1].shared_memory = value.max(48 << 10);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_memory: c_uint,
    _stream: usize,
    parameters: *const *const c_void,
    _extra: usize,
) -> Status {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    with(|state| {
        let Some(function) = state.functions.get(function.wrapping_sub(1)) else {
            return refused(state, "a launch of no kernel".to_owned());
        };
        let name = function.entry.name.clone();
        let (mut faults, mut last) = (Vec::new(), 0);
        let within = |of: [u32; 3], most: [u32; 3]| {
            of.iter()
                .zip(most)
                .all(|(of, most)| (1..=most).contains(of))
        };
        if !within(grid, GRID) || !within(block, BLOCK) || block.iter().product::<u32>() > THREADS {
            faults.push(format!("a grid of {grid:?} blocks of {block:?} threads"));
        }
        if shared_memory > function.shared_memory as u32 {
            faults.push(format!("{shared_memory} bytes of shared memory"));
        }
        for (at, parameter) in function.entry.parameters.iter().enumerate() {
            // SAFETY: there is one for each parameter of the kernel; that there is not is what a driver crashes over.
            let value = unsafe { *parameters.add(at) };
            if value.is_null() {
                faults.push(format!("parameter {at} is nowhere"));
                continue;
            }
            match parameter {
                Parameter::Pointer => {
                    // SAFETY: of eight bytes, as the kernel says.
                    let address = unsafe { value.cast::<u64>().read_unaligned() };
                    last = address;
                    if !state.is_live(address, 1) {
                        faults.push(format!("parameter {at}, {address:#x}, is not live"));
                    }
                }
                Parameter::Value(bytes) => {
                    // SAFETY: of that many bytes, as the kernel says: the driver copies them.
                    let bytes = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), *bytes) };
                    std::hint::black_box(bytes.iter().fold(0u8, |all, byte| all ^ byte));
                }
            }
        }
        for fault in faults {
            state.fault(format!("{name}: {fault}"));
        }
        *state.report.launches.entry(name).or_default() += 1;
        // The shapes are copied right before, and are a kernel's last buffer.
        if let Some((_, bytes)) = state.uploaded.take().filter(|(to, _)| *to == last) {
            state.report.shapes += 1;
            *state.report.uploads.entry(bytes).or_default() -= 1;
        }
        SUCCESS
    })
}

/// A tensor map: what the device would read of it is in the driver's own format, of which there is none here.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    _kind: c_uint,
    rank: c_uint,
    address: u64,
    sizes: *const u64,
    strides: *const u64,
    tile: *const u32,
    steps: *const u32,
    _interleave: c_uint,
    _swizzle: c_uint,
    _promotion: c_uint,
    _fill: c_uint,
) -> Status {
    let rank = rank as usize;
    // SAFETY: the caller's, of so many dimensions, of which the innermost has no stride.
    let (sizes, strides, tile, steps) = unsafe {
        map.write([0; 16]);
        (
            std::slice::from_raw_parts(sizes, rank),
            std::slice::from_raw_parts(strides, rank.saturating_sub(1)),
            std::slice::from_raw_parts(tile, rank),
            std::slice::from_raw_parts(steps, rank),
        )
    };
    with(|state| {
        let fine = (1..=5).contains(&rank)
            && address.is_multiple_of(16)
            && sizes.iter().all(|size| (1..=1 << 32).contains(size))
            && strides.iter().all(|stride| stride.is_multiple_of(16))
            && tile.iter().all(|size| (1..=256).contains(size))
            && steps.iter().all(|step| (1..=8).contains(step));
        match fine && state.is_live(address, 1) {
            true => SUCCESS,
            // Not a fault: kernels that are tried for a shape that they cannot do are passed over so.
            false => INVALID_VALUE,
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(_status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: the caller's.
    unsafe { text.write(c"CUDA_ERROR".as_ptr()) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: the caller's.
    unsafe { text.write(c"refused by the driver's stand-in".as_ptr()) };
    SUCCESS
}
