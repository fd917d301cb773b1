//! Checks for `injector doctor` which process faults this kernel supports, without side effects.

use std::path::Path;

use super::{limit, syscall_failure};
use crate::{
    kernel::{
        calls::CallWatch,
        hook::{self, Engine},
        layout,
        members::Members,
        needs::Needs,
        probe::{Finding, Verdict},
    },
    spec::process::errno::HOOKS,
    target::cgroup::{FREEZE, Hierarchy},
};

/// What hooks of files and the network require.
const HOOK: Needs =
    Needs { options: &["CONFIG_SECURITY_NETWORK", "CONFIG_SECURITY_PATH"], ..Needs::NONE };

/// What the freezer requires.
const FREEZER: Needs =
    Needs { linux: (5, 2), other: "without it, processes are stopped by SIGSTOP", ..Needs::NONE };

/// Checks every mechanism of process faults.
#[must_use]
pub fn findings() -> Vec<Finding> {
    // No such system call exists on any architecture, so none is ever counted.
    const NO_CALL: u32 = u32::MAX;

    let watch = CallWatch::start(&Members::default(), NO_CALL, 1, 0, 0);
    let signals = "signals sent by injector, and SIGSTOP where there is no freezer";
    let mut findings = vec![
        Finding {
            subject: "signals",
            faults: vec!["pause", "kill"],
            serves: signals,
            verdict: Verdict::Ok,
        },
        Finding {
            subject: "sys_enter",
            faults: vec!["kill"],
            serves: "--kill after=N:SYSCALL",
            verdict: Verdict::of(
                watch,
                &Needs { linux: (6, 1), options: &["CONFIG_FTRACE_SYSCALLS"], ..Needs::NONE },
            ),
        },
    ];
    findings.extend(failures());
    // Without cgroup v2, the check of the hierarchy itself says so.
    if let Ok(hierarchy) = Hierarchy::find() {
        findings.extend(controllers(hierarchy.mount()));
    }
    findings
}

/// The available engines and hooks of syscall failures.
fn failures() -> Vec<Finding> {
    /// A hook that few calls pass, to test attaching. BTF says which other hooks exist.
    const TRIED: &str = "file_lock";

    let [lsm, fmod_ret] =
        [Engine::Lsm, Engine::FmodRet].map(|engine| syscall_failure::check(engine, TRIED));
    let engine =
        if lsm.is_ok() { Some(Engine::Lsm) } else { fmod_ret.is_ok().then_some(Engine::FmodRet) };
    let serves = "--errno, at the kernel's security hooks";
    let finding = |subject, verdict| Finding { subject, faults: vec!["errno"], serves, verdict };
    let mut findings = vec![
        finding("engine lsm", Verdict::of(lsm, &hook::LSM)),
        finding("engine fmod-ret", Verdict::of(fmod_ret, &hook::PROGRAMS)),
    ];
    // Without an engine, no hook can be used.
    let Some(engine) = engine else { return findings };
    let names: Vec<_> = HOOKS.iter().map(|hook| engine.function(hook.name)).collect();
    let known = layout::functions(&names).unwrap_or_default();
    findings.extend(HOOKS.iter().zip(known).map(|(hook, known)| Finding {
        subject: hook.name,
        faults: Vec::new(),
        serves: hook.calls,
        verdict: match known {
            Some(_) => Verdict::Ok,
            None => Verdict::Unavailable {
                reason: format!("this kernel has no {}", engine.function(hook.name)),
                remedy: HOOK.lacking(),
            },
        },
    }));
    findings
}

fn controllers(mount: &Path) -> [Finding; 3] {
    // The root cgroup has no freezer file; all others have one if the kernel does.
    let has_freezer = std::fs::read_dir(mount).is_ok_and(|entries| {
        let mut below = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        below.all(|cgroup| cgroup.join(FREEZE).exists())
    });
    let freezer = if has_freezer {
        Verdict::Ok
    } else {
        Verdict::Unavailable {
            reason: format!("no cgroup has {FREEZE}"),
            remedy: FREEZER.lacking(),
        }
    };
    let remedy = &Needs::other("a kernel booted with cgroup v2 alone");
    [
        Finding {
            subject: "cgroup.freeze",
            faults: vec!["pause"],
            serves: "stops a whole cgroup at once, invisibly to its processes",
            verdict: freezer,
        },
        Finding {
            subject: "cpu.max",
            faults: vec!["cpu"],
            serves: "--cpu",
            verdict: Verdict::of(limit::check_controller(mount, "cpu"), remedy),
        },
        Finding {
            subject: "io.max",
            faults: vec!["io"],
            serves: "--io",
            verdict: Verdict::of(limit::check_controller(mount, "io"), remedy),
        },
    ]
}
