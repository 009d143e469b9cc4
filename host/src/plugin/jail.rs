//! What a process gives up that runs somebody else's plugin: memory beyond a limit, the network, writing to files,
//! starting programs, and reaching into other processes. By limits and by a filter of system calls (seccomp), which
//! whatever runs later in the process cannot take back; where the kernel has no such filter it is said.

/// Gives it all up, before any other thread is there. What cannot be given up here comes back, in words.
pub fn enter(memory_mib: u64) -> Vec<String> {
    let mut lacks = Vec::new();
    if let Err(why) = limit_memory(memory_mib) {
        lacks.push(format!("its memory has no limit ({why})"));
    }
    if let Err(why) = filter::apply() {
        lacks.push(format!(
            "network, files and other processes are as open to it as to this program ({why})"
        ));
    }
    lacks
}

/// What the process has of its own may grow by so much.
#[cfg(target_os = "linux")]
fn limit_memory(memory_mib: u64) -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let now = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .ok_or("/proc/self/status has no VmData")?;
    let most = (now << 10).saturating_add(memory_mib.saturating_mul(1 << 20));
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: reads a structure that lives until the call returns.
    match unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

#[cfg(not(target_os = "linux"))]
fn limit_memory(_: u64) -> Result<(), String> {
    Err("only Linux has one".to_owned())
}

/// Where the numbers of the calls are not written down below.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod filter {
    pub fn apply() -> Result<(), String> {
        Err("there is no filter for this system".to_owned())
    }
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod filter {
    use std::collections::BTreeMap;

    use libc::c_long;
    use seccompiler::SeccompCmpArgLen::{Dword, Qword};
    use seccompiler::SeccompCmpOp::{MaskedEq, Ne};
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// From this thread, and those it begins, on.
    pub fn apply() -> Result<(), String> {
        let plain = |error: &dyn std::fmt::Display| error.to_string();
        let (refused, missing) = programs().map_err(|error| plain(&error))?;
        for program in [refused, missing] {
            seccompiler::apply_filter(&program).map_err(|error| plain(&error))?;
        }
        Ok(())
    }

    /// What is refused, and what is as if the kernel did not have it, so that another way is tried.
    fn programs() -> Result<(BpfProgram, BpfProgram), BackendError> {
        let program = |rules: Rules, code: i32| -> Result<BpfProgram, BackendError> {
            let refused = SeccompAction::Errno(code as u32);
            let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
            SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)?.try_into()
        };
        let mut refused: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        refused.extend(refused_in_part()?);
        let missing = MISSING.filter(|call| !KNOWN.contains(call));
        let missing = missing.map(|call| (call, Vec::new())).collect();
        Ok((
            program(refused, libc::EACCES)?,
            program(missing, libc::ENOSYS)?,
        ))
    }

    /// Refused whatever the arguments are.
    #[rustfmt::skip]
    const REFUSED: &[c_long] = &[
        // The network, and other processes by sockets.
        libc::SYS_socket,
        // Files.
        libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_mkdirat, libc::SYS_linkat, libc::SYS_symlinkat,
        libc::SYS_mknodat, libc::SYS_truncate, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown,
        libc::SYS_fchownat, libc::SYS_utimensat, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr,
        libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr, libc::SYS_mount,
        libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_open_by_handle_at,
        libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct,
        // Programs, and other processes.
        libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev, libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_setns, libc::SYS_unshare, libc::SYS_setrlimit, libc::SYS_bpf, libc::SYS_perf_event_open,
        libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key, libc::SYS_reboot, libc::SYS_init_module,
        libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_userfaultfd,
        libc::SYS_setsid, libc::SYS_setpgid, libc::SYS_kcmp, libc::SYS_setpriority,
        // Memory that no limit counts.
        libc::SYS_memfd_create, libc::SYS_shmget, libc::SYS_shmat, libc::SYS_semget, libc::SYS_msgget,
        #[cfg(target_arch = "x86_64")] libc::SYS_creat, #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
        #[cfg(target_arch = "x86_64")] libc::SYS_rename, #[cfg(target_arch = "x86_64")] libc::SYS_mkdir,
        #[cfg(target_arch = "x86_64")] libc::SYS_rmdir, #[cfg(target_arch = "x86_64")] libc::SYS_link,
        #[cfg(target_arch = "x86_64")] libc::SYS_symlink, #[cfg(target_arch = "x86_64")] libc::SYS_mknod,
        #[cfg(target_arch = "x86_64")] libc::SYS_chmod, #[cfg(target_arch = "x86_64")] libc::SYS_chown,
        #[cfg(target_arch = "x86_64")] libc::SYS_lchown, #[cfg(target_arch = "x86_64")] libc::SYS_utime,
        #[cfg(target_arch = "x86_64")] libc::SYS_utimes, #[cfg(target_arch = "x86_64")] libc::SYS_futimesat,
        #[cfg(target_arch = "x86_64")] libc::SYS_fork, #[cfg(target_arch = "x86_64")] libc::SYS_vfork,
        libc::SYS_renameat,
    ];

    /// Refused with these arguments: opening to write, processes that are no threads, signals to others, limits set
    /// anew, memory shared with nobody.
    fn refused_in_part() -> Result<Rules, BackendError> {
        let flag = |argument: u8, flags: libc::c_int| {
            let flags = flags as u64;
            SeccompCondition::new(argument, Dword, MaskedEq(flags), flags)
        };
        let to_write = |argument: u8| -> Result<Vec<SeccompRule>, BackendError> {
            let flags = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC];
            let each = flags.map(|flags| SeccompRule::new(vec![flag(argument, flags)?]));
            each.into_iter().collect()
        };
        let other = |argument: u8| -> Result<Vec<SeccompRule>, BackendError> {
            let own = u64::from(std::process::id());
            let other = SeccompCondition::new(argument, Dword, Ne, own)?;
            Ok(vec![SeccompRule::new(vec![other])?])
        };
        let no_thread = SeccompCondition::new(0, Dword, MaskedEq(libc::CLONE_THREAD as u64), 0)?;
        let set = SeccompCondition::new(2, Qword, Ne, 0)?;
        let shared = flag(3, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
        Ok(Rules::from([
            (libc::SYS_openat, to_write(2)?),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_open, to_write(1)?),
            (libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]),
            (libc::SYS_kill, other(0)?),
            (libc::SYS_tgkill, other(0)?),
            (libc::SYS_prlimit64, vec![SeccompRule::new(vec![set])?]),
            (libc::SYS_mmap, vec![SeccompRule::new(vec![shared])?]),
        ]))
    }

    /// Calls of the last years, numbered alike on all machines, and those to come: `io_uring` and `openat2`, whose
    /// arguments no filter sees; `clone3`, in whose place threads are begun by `clone`.
    const MISSING: std::ops::Range<i64> = 424..700;

    /// Those of them that do no harm: `close_range`, `faccessat2`, `process_madvise`, `epoll_pwait2`, `futex_waitv`,
    /// `cachestat`, `map_shadow_stack`, `futex_wake`, `futex_wait`, `futex_requeue`, `mseal`.
    const KNOWN: [i64; 11] = [436, 439, 440, 441, 449, 451, 453, 454, 455, 456, 462];

    #[cfg(test)]
    mod tests {
        #[test]
        fn the_filters_are_such_as_a_kernel_takes() {
            let (refused, missing) = super::programs().unwrap();
            // BPF_MAXINSNS.
            assert!(refused.len() < 4096 && missing.len() < 4096);
        }
    }
}
