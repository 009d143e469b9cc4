//! The run-time compiler's calls, with the signatures of `nvrtc.h`: handed to the real one, and watched.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::Instant;

use libloading::Library;

use crate::state::with;

type Status = c_int;

const SUCCESS: Status = 0;
const INVALID_INPUT: Status = 3;
const INVALID_PROGRAM: Status = 4;
const COMPILATION: Status = 6;

/// The real one.
fn compiler() -> &'static Library {
    static COMPILER: OnceLock<Library> = OnceLock::new();
    COMPILER.get_or_init(|| {
        let path = std::env::var_os(crate::COMPILER)
            .unwrap_or_else(|| panic!("{} names no compiler", crate::COMPILER));
        // SAFETY: NVIDIA's library, which does nothing when it is loaded.
        unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{error}"))
    })
}

/// A program from its making on, and what came of it. What has no result has not been compiled.
struct Program {
    source: Vec<u8>,
    /// PTX or what the compiler said, each with the zero that ends it.
    ptx: Vec<u8>,
    log: Vec<u8>,
}

static PROGRAMS: LazyLock<Mutex<HashMap<usize, Program>>> = LazyLock::new(Mutex::default);

fn of_program(handle: usize, run: impl FnOnce(&mut Program) -> Status) -> Status {
    let mut programs = PROGRAMS.lock().expect("nobody panics with it");
    programs.get_mut(&handle).map_or(INVALID_PROGRAM, run)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> Status {
    // SAFETY: the real function of that name and signature.
    unsafe {
        let version: libloading::Symbol<
            '_,
            unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
        > = compiler().get(b"nvrtcVersion\0").expect("a compiler");
        version(major, minor)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut usize,
    source: *const c_char,
    _name: *const c_char,
    headers: c_int,
    _header_texts: *const *const c_char,
    _header_names: *const *const c_char,
) -> Status {
    if headers != 0 {
        return INVALID_INPUT;
    }
    // SAFETY: a text that ends with a zero.
    let mut source = unsafe { CStr::from_ptr(source) }.to_bytes().to_vec();
    if let Ok(part) = std::env::var(crate::SPOIL)
        && String::from_utf8_lossy(&source).contains(&part)
    {
        source.extend(b"\n#error spoilt by the test\n");
    }
    source.push(0);
    let handle = with(crate::state::State::handle);
    let made = Program {
        source,
        ptx: Vec::new(),
        log: vec![0],
    };
    PROGRAMS
        .lock()
        .expect("nobody panics with it")
        .insert(handle, made);
    // SAFETY: the caller's.
    unsafe { program.write(handle) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCompileProgram(
    program: usize,
    count: c_int,
    options: *const *const c_char,
) -> Status {
    // SAFETY: so many texts, each of which ends with a zero.
    let options: Vec<&CStr> = unsafe {
        (0..count as usize)
            .map(|at| CStr::from_ptr(*options.add(at)))
            .collect()
    };
    let started = Instant::now();
    of_program(program, |program| {
        let kept = kept(&program.source, &options);
        let cached = kept.as_ref().and_then(|path| std::fs::read(path).ok());
        let was_cached = cached.is_some();
        let result = match cached {
            Some(ptx) => Ok(ptx),
            None => compile(&program.source, &options),
        };
        let status = match result {
            Ok(ptx) => {
                if let (Some(path), false) = (kept, was_cached) {
                    keep(&path, &ptx);
                }
                program.ptx = ptx;
                SUCCESS
            }
            Err(log) => {
                program.log = log;
                COMPILATION
            }
        };
        with(|state| {
            let report = &mut state.report;
            report.compile_seconds += started.elapsed().as_secs_f64();
            let architectures = options.iter().map(|option| option.to_string_lossy());
            let architectures = architectures.filter_map(|option| {
                let (_, architecture) = option.split_once("--gpu-architecture=")?;
                Some(architecture.to_owned())
            });
            report.architectures.extend(architectures);
            match status {
                SUCCESS => {
                    report.compiled += 1;
                    report.cached += u64::from(was_cached);
                    let rounds = program.source.windows(4).any(|part| part == b"tf32");
                    report.tf32 += u64::from(rounds);
                }
                _ => {
                    let log = String::from_utf8_lossy(&program.log);
                    report.refused.push(log.trim_end_matches('\0').to_owned());
                }
            }
        });
        status
    })
}

/// Where what becomes of a source is kept, if anywhere.
fn kept(source: &[u8], options: &[&CStr]) -> Option<PathBuf> {
    let folder = std::env::var_os(crate::CACHE)?;
    // cubecl lists the same kernel's types, variables and shared arrays in another order every time: to be the same, it has
    // the same lines, wherever its shared arrays lie.
    const SHARED: &str = "dynamic_shared_mem[";
    let text = String::from_utf8_lossy(source);
    let mut lines: Vec<&str> = text
        .lines()
        .map(|line| line.split(SHARED).next().unwrap_or(line))
        .collect();
    lines.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (lines, options).hash(&mut hasher);
    Some(PathBuf::from(folder).join(format!("{:016x}.ptx", hasher.finish())))
}

/// Whole or not at all: another process may be reading. That it cannot be kept costs time, nothing else.
fn keep(path: &std::path::Path, ptx: &[u8]) {
    let beside = path.with_extension(std::process::id().to_string());
    if std::fs::write(&beside, ptx).is_ok() {
        let _ = std::fs::rename(&beside, path);
    }
}

/// PTX, or what the real compiler says of the source.
fn compile(source: &[u8], options: &[&CStr]) -> Result<Vec<u8>, Vec<u8>> {
    type Create = unsafe extern "C" fn(
        *mut usize,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status;
    type Compile = unsafe extern "C" fn(usize, c_int, *const *const c_char) -> Status;
    type Size = unsafe extern "C" fn(usize, *mut usize) -> Status;
    type Text = unsafe extern "C" fn(usize, *mut u8) -> Status;
    type Destroy = unsafe extern "C" fn(*mut usize) -> Status;
    let nowhere = std::ptr::null();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: the real functions of these names and signatures, called in the order that they are to be.
    unsafe {
        let real = compiler();
        let create = real
            .get::<Create>(b"nvrtcCreateProgram\0")
            .expect("a compiler");
        let run = real
            .get::<Compile>(b"nvrtcCompileProgram\0")
            .expect("a compiler");
        let destroy = real
            .get::<Destroy>(b"nvrtcDestroyProgram\0")
            .expect("a compiler");
        let mut program = 0;
        let status = create(
            &raw mut program,
            source.as_ptr().cast(),
            nowhere,
            0,
            nowhere.cast(),
            nowhere.cast(),
        );
        if status != SUCCESS {
            return Err(format!("nvrtcCreateProgram: {status}\0").into_bytes());
        }
        let text = |size: &[u8], text: &[u8]| {
            let size = real.get::<Size>(size).expect("a compiler");
            let text = real.get::<Text>(text).expect("a compiler");
            let mut len = 0;
            if size(program, &raw mut len) != SUCCESS {
                return vec![0];
            }
            let mut bytes = vec![0; len.max(1)];
            text(program, bytes.as_mut_ptr());
            bytes
        };
        let status = run(program, pointers.len() as c_int, pointers.as_ptr());
        let result = match status {
            SUCCESS => Ok(text(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")),
            _ => Err(text(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")),
        };
        destroy(&raw mut program);
        result
    }
}

/// Writes a length, or a text.
unsafe fn length(program: usize, size: *mut usize, of: fn(&Program) -> &[u8]) -> Status {
    of_program(program, |program| {
        // SAFETY: the caller's.
        unsafe { size.write(of(program).len()) };
        SUCCESS
    })
}

unsafe fn text(program: usize, to: *mut u8, of: fn(&Program) -> &[u8]) -> Status {
    of_program(program, |program| {
        let text = of(program);
        // SAFETY: the caller's, of the length that it was told.
        unsafe { to.copy_from_nonoverlapping(text.as_ptr(), text.len()) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTXSize(program: usize, size: *mut usize) -> Status {
    // SAFETY: the caller's.
    unsafe { length(program, size, |program| &program.ptx) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTX(program: usize, to: *mut u8) -> Status {
    // SAFETY: the caller's.
    unsafe { text(program, to, |program| &program.ptx) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLogSize(program: usize, size: *mut usize) -> Status {
    // SAFETY: the caller's.
    unsafe { length(program, size, |program| &program.log) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLog(program: usize, to: *mut u8) -> Status {
    // SAFETY: the caller's.
    unsafe { text(program, to, |program| &program.log) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcDestroyProgram(program: *mut usize) -> Status {
    // SAFETY: the caller's.
    let handle = unsafe { program.read() };
    let mut programs = PROGRAMS.lock().expect("nobody panics with it");
    match programs.remove(&handle) {
        Some(_) => SUCCESS,
        None => INVALID_PROGRAM,
    }
}
