//! Changes that the kernel does not undo by itself when injector dies.

use std::{
    ffi::OsStr,
    fmt::{self, Display, Formatter},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use injector_common::packet::Direction;
use nix::sys::signal::Signal;
use procfs::process::all_processes;
use serde::{Deserialize, Serialize};

use super::journal;
use crate::{
    kernel::{
        clsact,
        device::{self, Identity},
        netns::Netns,
        pidfd::Handle,
        rcu, sysctl, vdso,
    },
    target::cgroup::{
        FREEZE, for_each_below, is_same, populated_below, processes_below, processes_in, says,
        write_to,
    },
};

/// A change to the machine, with everything required to undo it. Undoing is idempotent, and
/// harmless if the change was never made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// A cgroup was created.
    MakeCgroup {
        /// Its directory. Injector chooses a unique name for it.
        path: PathBuf,
        /// The cgroup that its processes came from, and to which they return.
        home: PathBuf,
        /// Inode of the directory, once known. Protects a cgroup of the same name that another
        /// process created.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// A clsact qdisc was added to an interface that had none.
    AddClsact {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the interface.
        interface: u32,
        /// Its name, for messages.
        name: String,
    },
    /// A filter was added below a clsact qdisc.
    AddFilter {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the interface.
        interface: u32,
        /// Its name, for messages.
        name: String,
        /// True for egress, false for ingress.
        egress: bool,
        /// The filter's handle.
        handle: u32,
        /// Its priority.
        #[serde(default = "old_priority")]
        priority: u16,
        /// ID of its program. Protects another program's filter in the same place.
        #[serde(default)]
        program: Option<u32>,
    },
    /// A network device was created.
    AddDevice {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the device.
        interface: u32,
        /// Its name.
        name: String,
        /// Its random link-layer address. Protects another device of the same name.
        #[serde(default)]
        address: Option<[u8; 6]>,
    },
    /// The clocks of processes were skewed; new programs may be held at exec.
    SkewClocks {
        /// ID of the injector that patched their vDSO.
        owner: u64,
        /// The cgroup's directory, if they are those of a cgroup.
        #[serde(default)]
        cgroup: Option<PathBuf>,
        /// Inode of the cgroup's directory. Protects processes in another cgroup of the same name.
        #[serde(default)]
        inode: Option<u64>,
        /// The processes at the start, if they are a set of processes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        processes: Vec<i32>,
    },
    /// A cgroup was frozen.
    FreezeCgroup {
        /// Its directory.
        path: PathBuf,
        /// Inode of its directory. Protects another cgroup of the same name.
        inode: u64,
    },
    /// A controller was enabled for the children of a cgroup.
    EnableController {
        /// Its directory.
        cgroup: PathBuf,
        /// The controller.
        controller: String,
        /// Inode of the directory. Protects another cgroup of the same name.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// A limit of a cgroup was set.
    SetLimit {
        /// The limit file.
        path: PathBuf,
        /// Inode of its directory. Protects another cgroup of the same name.
        inode: u64,
        /// The line before the change.
        before: String,
        /// The line after the change.
        after: String,
    },
    /// Running processes were stopped.
    StopProcesses {
        /// The stopped processes.
        processes: Vec<StoppedProcess>,
    },
    /// A sysctl of a network namespace was changed. Several injectors may change the same one; the
    /// last to end restores it.
    SetSysctl {
        /// Inode of the network namespace.
        netns: u64,
        /// Its path below /proc/sys/net.
        name: String,
        /// The value before the change.
        before: String,
        /// The value after the change.
        after: String,
    },
    /// Grace periods of RCU were expedited.
    ExpediteRcu {
        /// The value that was set in place of 0. Tells it apart from the setting of another process.
        value: u32,
    },
}

/// A process that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedProcess {
    /// Its process ID.
    pub pid: i32,
    /// Its start time, which distinguishes it from another process with the same ID.
    pub started: u64,
}

/// The priority used by injector 0.1.0, whose journals do not record it.
const fn old_priority() -> u16 {
    clsact::OLD_PRIORITY
}

/// Result of undoing an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// The action is undone.
    Done,
    /// Another process still uses the result. Undo again later.
    InUse,
}

/// How long a signalled process may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(300);

/// How long to wait for a cgroup to empty: exiting processes keep it busy for a moment.
const EMPTYING_TIMEOUT: Duration = Duration::from_secs(2);

impl Action {
    /// Whether a single kernel request performs the action. If that request fails, nothing changed,
    /// and anything that already exists belongs to another process.
    #[must_use]
    pub const fn is_single_call(&self) -> bool {
        match self {
            Self::MakeCgroup { .. }
            | Self::AddClsact { .. }
            | Self::AddFilter { .. }
            | Self::FreezeCgroup { .. }
            | Self::EnableController { .. }
            | Self::SetLimit { .. }
            | Self::SetSysctl { .. }
            | Self::ExpediteRcu { .. } => true,
            Self::AddDevice { .. } | Self::SkewClocks { .. } | Self::StopProcesses { .. } => false,
        }
    }

    /// Undoes the action.
    pub fn undo(&self) -> io::Result<Undone> {
        match self {
            Self::MakeCgroup { path, home, inode } => remove_cgroup(path, home, *inode),
            other => other.undo_at_once().map(|()| Undone::Done),
        }
    }

    fn undo_at_once(&self) -> io::Result<()> {
        match self {
            // Handled above.
            Self::MakeCgroup { .. } => Ok(()),
            Self::AddClsact { netns, interface, .. } => {
                clsact::remove_qdisc_if_empty(*netns, *interface).map_err(io::Error::other)
            }
            Self::AddFilter { netns, interface, egress, handle, priority, program, .. } => {
                let direction = if *egress { Direction::Egress } else { Direction::Ingress };
                let place = clsact::Place { priority: *priority, handle: *handle };
                clsact::remove_filter(*netns, *interface, direction, place, *program)
                    .map_err(io::Error::other)
            }
            Self::AddDevice { netns, interface, name, address } => {
                let identity =
                    Identity { name: name.clone(), index: *interface, address: *address };
                device::remove(*netns, &identity).map_err(io::Error::other)
            }
            Self::SkewClocks { owner, cgroup, inode, processes } => {
                match cgroup {
                    Some(cgroup) if inode.is_some_and(|inode| !is_same(cgroup, inode)) => {}
                    Some(cgroup) => let_go(|| processes_below(cgroup)),
                    None => let_go(|| started_by(processes, *owner)),
                }
                vdso::restore_all(*owner)
            }
            Self::FreezeCgroup { path, inode } => thaw(path, *inode),
            // Disabling the controller would discard that setting.
            Self::EnableController { cgroup, controller, .. } if is_used(cgroup, controller) => {
                Ok(())
            }
            Self::EnableController { cgroup, inode, .. }
                if inode.is_some_and(|inode| !is_same(cgroup, inode)) =>
            {
                Ok(())
            }
            Self::EnableController { cgroup, controller, .. } => {
                let control = cgroup.join("cgroup.subtree_control");
                match fs::write(control, format!("-{controller}")) {
                    // Another process uses it further below.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
                    Err(error) if is_gone(&error) => Ok(()),
                    written => written,
                }
            }
            Self::SetLimit { path, inode, before, after } => {
                restore_limit(path, *inode, before, after)
            }
            Self::StopProcesses { processes } => {
                processes.iter().for_each(let_stopped_go);
                Ok(())
            }
            Self::SetSysctl { netns, name, before, after } => {
                // This injector's journal is one of them.
                if journal::announcements(self) > 1 {
                    return Ok(());
                }
                restore_sysctl(*netns, name, before, after)
            }
            Self::ExpediteRcu { value } => {
                if rcu::expedited()? == *value {
                    rcu::set_expedited(0)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// How things are after the action was undone.
    #[must_use]
    pub fn undone(&self) -> String {
        match self {
            Self::MakeCgroup { path, .. } => format!("the cgroup {} is removed", path.display()),
            Self::AddClsact { name, .. } => format!("the clsact qdisc of {name} is removed"),
            Self::AddFilter { name, egress, .. } => {
                let side = if *egress { "egress" } else { "ingress" };
                format!("the {side} tc filter of {name} is removed")
            }
            Self::AddDevice { name, .. } => format!("the network device {name} is removed"),
            Self::SkewClocks { cgroup: Some(cgroup), .. } => {
                format!("the clocks of the cgroup {} are right", cgroup.display())
            }
            Self::SkewClocks { processes, .. } => {
                let pids: Vec<String> = processes.iter().map(i32::to_string).collect();
                format!("the clocks of the processes {} are right", pids.join(", "))
            }
            Self::FreezeCgroup { path, .. } => format!("the cgroup {} is thawed", path.display()),
            Self::EnableController { cgroup, controller, .. } => {
                format!("the {controller} controller below {} is disabled", cgroup.display())
            }
            Self::SetLimit { path, before, after, .. } => {
                format!(
                    "{} is {before}, unless another process has set it; it was {after}",
                    path.display()
                )
            }
            Self::StopProcesses { processes } => {
                let pids: Vec<String> =
                    processes.iter().map(|process| process.pid.to_string()).collect();
                format!("the processes {} continue", pids.join(", "))
            }
            Self::SetSysctl { name, before, after, .. } => format!(
                "/proc/sys/net/{name} is {before}, unless another process has set it; it was {after}"
            ),
            Self::ExpediteRcu { .. } => "grace periods of RCU are as before".into(),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::MakeCgroup { path, .. } => write!(f, "making the cgroup {}", path.display()),
            Self::AddClsact { name, .. } => write!(f, "adding a clsact qdisc to {name}"),
            Self::AddFilter { name, egress, .. } => {
                let side = if *egress { "egress" } else { "ingress" };
                write!(f, "adding a tc filter to {name} {side}")
            }
            Self::AddDevice { name, .. } => write!(f, "making the network device {name}"),
            Self::SkewClocks { cgroup: Some(cgroup), .. } => {
                write!(f, "making the clocks of {} go wrong", cgroup.display())
            }
            Self::SkewClocks { processes, .. } => {
                let pids: Vec<String> = processes.iter().map(i32::to_string).collect();
                write!(f, "making the clocks of the processes {} go wrong", pids.join(", "))
            }
            Self::FreezeCgroup { path, .. } => write!(f, "freezing the cgroup {}", path.display()),
            Self::EnableController { cgroup, controller, .. } => {
                write!(f, "enabling the {controller} controller below {}", cgroup.display())
            }
            Self::SetLimit { path, before, after, .. } => {
                write!(f, "setting {} from {before} to {after}", path.display())
            }
            Self::StopProcesses { processes } => {
                let pids: Vec<String> =
                    processes.iter().map(|process| process.pid.to_string()).collect();
                write!(f, "stopping the processes {}", pids.join(", "))
            }
            Self::SetSysctl { name, before, after, .. } => {
                write!(f, "setting /proc/sys/net/{name} from {before} to {after}")
            }
            Self::ExpediteRcu { .. } => write!(f, "expediting grace periods of RCU"),
        }
    }
}

/// Thaws a cgroup if it still exists.
fn thaw(path: &Path, inode: u64) -> io::Result<()> {
    match write_to(path, inode, FREEZE, "0") {
        // The cgroup was removed meanwhile.
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

/// Restores a limit, unless another process has changed it since.
fn restore_limit(path: &Path, inode: u64, before: &str, after: &str) -> io::Result<()> {
    let (Some(cgroup), Some(file)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(());
    };
    if !is_same(cgroup, inode) {
        return Ok(());
    }
    let restored = fs::read_to_string(path).and_then(|text| {
        // A line may end with a space.
        let is_ours = text.lines().any(|line| line.trim_end() == after);
        if is_ours { write_to(cgroup, inode, file, before) } else { Ok(()) }
    });
    match restored {
        // The cgroup was removed meanwhile.
        Err(error) if is_gone(&error) => Ok(()),
        restored => restored,
    }
}

/// Whether a cgroup below this one has a non-default setting of the controller.
fn is_used(cgroup: &Path, controller: &str) -> bool {
    // The default contents of the files (cgroup-v2.rst).
    let defaults: &[(&str, &str)] = match controller {
        "cpu" => &[("cpu.max", "max 100000"), ("cpu.weight", "100")],
        "io" => &[("io.max", ""), ("io.weight", "default 100")],
        _ => &[],
    };
    let is_set = |child: &Path| {
        defaults.iter().any(|(file, default)| {
            fs::read_to_string(child.join(file)).is_ok_and(|text| text.trim() != *default)
        })
    };
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    below.map(|entry| entry.path()).any(|path| path.is_dir() && is_set(&path))
}

/// Whether a cgroup file cannot be used because the cgroup was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Resumes a process unless it has ended. A running process only receives a `SIGCONT`, which also
/// cancels a pending stop.
fn let_stopped_go(process: &StoppedProcess) {
    if let Some(handle) = Handle::find(process.pid, process.started) {
        // The process may have ended meanwhile.
        let _ = handle.signal(Signal::SIGCONT as i32);
    }
}

/// Resumes programs that were held at exec. Their vDSO is unpatched, unlike that of every other
/// process of the target, so they can be distinguished from processes that others stopped. (A
/// program resumes before it is patched, see `Patcher::patch_held`.)
///
/// A program that is just being held or patched stops only when it is scheduled, so this keeps
/// searching for a while.
fn let_go(processes: impl Fn() -> Vec<i32>) {
    let end = Instant::now() + STOP_TIMEOUT;
    loop {
        for pid in processes() {
            // The handle refers to this process or none, even if its ID is reused.
            let Some(process) = Handle::open(pid) else { continue };
            if process.is_stopped() && matches!(vdso::owner_of(pid), Ok(None)) {
                // The process may have ended meanwhile.
                let _ = process.signal(Signal::SIGCONT as i32);
            }
        }
        if Instant::now() > end {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The named processes, and those whose parent has clocks skewed by this injector.
fn started_by(named: &[i32], owner: u64) -> Vec<i32> {
    let is_skewed = |pid| matches!(vdso::owner_of(pid), Ok(Some(found)) if found == owner);
    let all = all_processes().into_iter().flatten().flatten();
    let stats = all.filter_map(|process| process.stat().ok());
    // Few processes are stopped, and only those are to be resumed.
    let stopped = stats.filter(|stat| stat.state == 'T');
    let found = stopped.filter(|stat| {
        [stat.pid, stat.ppid].iter().any(|pid| named.contains(pid)) || is_skewed(stat.ppid)
    });
    found.map(|stat| stat.pid).collect()
}

/// Restores a sysctl, unless another process has changed it since.
fn restore_sysctl(netns: u64, name: &str, before: &str, after: &str) -> io::Result<()> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    match sysctl::get(&netns, name).map_err(io::Error::other)? {
        Ok(current) if current == after => {
            sysctl::set(&netns, name, before).map_err(io::Error::other)?
        }
        // It was changed by another process, or no longer exists.
        _ => Ok(()),
    }
}

/// Moves the processes of a cgroup back to their origin, then removes the cgroup. Cgroups below it
/// belong to others: while one of them contains processes, this cgroup and everything below it
/// stay.
fn remove_cgroup(path: &Path, home: &Path, inode: Option<u64>) -> io::Result<Undone> {
    if !path.exists() || inode.is_some_and(|inode| !is_same(path, inode)) {
        return Ok(Undone::Done);
    }
    // The origin may have been removed; then its nearest existing ancestor is used.
    let home = home.ancestors().find(|cgroup| cgroup.join("cgroup.procs").exists()).unwrap_or(home);
    let end = Instant::now() + EMPTYING_TIMEOUT;
    loop {
        let processes = processes_in(path);
        for pid in &processes {
            // An ended process need not be moved. A process that cannot be moved makes the removal
            // fail.
            let _ = fs::write(home.join("cgroup.procs"), pid.to_string());
        }
        if !populated_below(path).is_empty() || is_announced_below(path) {
            return Ok(Undone::InUse);
        }
        match for_each_below(path, &mut |cgroup| match fs::remove_dir(cgroup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }) {
            Err(error) if Instant::now() > end => {
                // Processes of another PID namespace are neither visible nor movable from here.
                let is_in_use = processes.is_empty() && says(path, "populated 1");
                return if is_in_use { Ok(Undone::InUse) } else { Err(error) };
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(Undone::Done),
        }
    }
}

/// Whether a journal announces the creation of a cgroup below this one, and it exists.
fn is_announced_below(path: &Path) -> bool {
    journal::announced().any(|action| match action {
        Action::MakeCgroup { path: other, inode, .. } => {
            let is_there = inode.map_or_else(|| other.exists(), |inode| is_same(&other, inode));
            other != path && other.starts_with(path) && is_there
        }
        _ => false,
    })
}
