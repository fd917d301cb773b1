//! What the kernel does not undo by itself when we die.

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
use serde::{Deserialize, Serialize};

use super::journal;
use crate::{
    kernel::{
        clsact,
        device::{self, Identity},
        netns::Netns,
        pidfd::Handle,
        sysctl, vdso,
    },
    target::cgroup::{
        FREEZE, for_each_below, is_same, populated_below, processes_below, processes_in, says,
        write_to,
    },
};

/// Something done to the machine, with all that is needed to undo it. Undoing is idempotent, and right
/// as well if the thing was not done yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// A cgroup was made.
    MakeCgroup {
        /// Its directory, whose name nobody else chooses.
        path: PathBuf,
        /// The cgroup that its processes came from, and to which they go back.
        home: PathBuf,
        /// Inode of the directory, once it is known, so that none is removed that others made with its name.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// A clsact qdisc was added to an interface that had none.
    AddClsact {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the interface.
        interface: u32,
        /// Its name, for people.
        name: String,
    },
    /// A filter was added below a clsact qdisc.
    AddFilter {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the interface.
        interface: u32,
        /// Its name, for people.
        name: String,
        /// On the egress side, else ingress.
        egress: bool,
        /// The filter's handle.
        handle: u32,
        /// Its priority.
        #[serde(default = "old_priority")]
        priority: u16,
        /// The id of its program, so that none of others is removed that has its place.
        #[serde(default)]
        program: Option<u32>,
    },
    /// A network device was made.
    AddDevice {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the device.
        interface: u32,
        /// Its name.
        name: String,
        /// Its link-layer address, which is random, so that none of others is removed that has its name.
        #[serde(default)]
        address: Option<[u8; 6]>,
    },
    /// The clocks of a cgroup's processes were made to go wrong, and new programs are held at times.
    SkewClocks {
        /// Who patched their vDSO.
        owner: u64,
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// Inode of that, so that no process is let go on of one that others made with its name.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// A cgroup was frozen that was not.
    FreezeCgroup {
        /// Its directory.
        path: PathBuf,
        /// Inode of that, so that none is thawed that others made with its name.
        inode: u64,
    },
    /// The cgroups below a cgroup were given a controller.
    EnableController {
        /// Its directory.
        cgroup: PathBuf,
        /// Which controller.
        controller: String,
        /// Inode of the directory, so that none is changed that others made with its name.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// A limit of a cgroup was set.
    SetLimit {
        /// The file.
        path: PathBuf,
        /// Inode of its directory, so that none is changed that others made with its name.
        inode: u64,
        /// The line of the file before.
        before: String,
        /// The line of the file since.
        after: String,
    },
    /// Processes were stopped that ran.
    StopProcesses {
        /// Which.
        processes: Vec<StoppedProcess>,
    },
    /// A setting of a network namespace was changed. Several injectors may do that; the last one to end sets
    /// it back.
    SetSysctl {
        /// Inode of the network namespace.
        netns: u64,
        /// Its path below /proc/sys/net.
        name: String,
        /// What it was.
        before: String,
        /// What it is.
        after: String,
    },
}

/// A process that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedProcess {
    /// Its number.
    pub pid: i32,
    /// When it was made, so that it is not taken for another one with its number.
    pub started: u64,
}

/// What a journal of injector 0.1.0 does not say.
const fn old_priority() -> u16 {
    clsact::OLD_PRIORITY
}

/// What came of undoing something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// It is as if it had not been done.
    Done,
    /// Others use it by now, so it stays until they do not: to be undone later.
    InUse,
}

/// How long a process that has been stopped may take until it does stop.
const SETTLING: Duration = Duration::from_millis(300);

/// Processes that exit keep their cgroup busy for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

impl Action {
    /// Whether it is done by a single request to the kernel: if that fails, nothing has been done, and what is there already is
    /// somebody else's.
    #[must_use]
    pub const fn is_single_call(&self) -> bool {
        match self {
            Self::MakeCgroup { .. }
            | Self::AddClsact { .. }
            | Self::AddFilter { .. }
            | Self::FreezeCgroup { .. }
            | Self::EnableController { .. }
            | Self::SetLimit { .. }
            | Self::SetSysctl { .. } => true,
            Self::AddDevice { .. } | Self::SkewClocks { .. } | Self::StopProcesses { .. } => false,
        }
    }

    /// Undoes it.
    pub fn undo(&self) -> io::Result<Undone> {
        match self {
            Self::MakeCgroup { path, home, inode } => remove_cgroup(path, home, *inode),
            other => other.undo_at_once().map(|()| Undone::Done),
        }
    }

    fn undo_at_once(&self) -> io::Result<()> {
        match self {
            // See above.
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
            Self::SkewClocks { owner, cgroup, inode } => {
                if inode.is_none_or(|inode| is_same(cgroup, inode)) {
                    let_go(cgroup);
                }
                vdso::restore_all(*owner)
            }
            Self::FreezeCgroup { path, inode } => thaw(path, *inode),
            // It would be lost with the controller.
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
                    // By now it is used further below, by somebody else.
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
                // This one's journal says so as well.
                if journal::announcements(self) > 1 {
                    return Ok(());
                }
                restore_sysctl(*netns, name, before, after)
            }
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
            Self::SkewClocks { cgroup, .. } => {
                write!(f, "making the clocks of {} go wrong", cgroup.display())
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
        }
    }
}

/// Thaws a cgroup, if it is still there.
fn thaw(path: &Path, inode: u64) -> io::Result<()> {
    match write_to(path, inode, FREEZE, "0") {
        // It was removed just now.
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

/// Sets a limit back, unless someone has changed it since.
fn restore_limit(path: &Path, inode: u64, before: &str, after: &str) -> io::Result<()> {
    let (Some(cgroup), Some(file)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(());
    };
    if !is_same(cgroup, inode) {
        return Ok(());
    }
    let restored = fs::read_to_string(path).and_then(|text| {
        // A line may have a space at its end.
        let is_ours = text.lines().any(|line| line.trim_end() == after);
        if is_ours { write_to(cgroup, inode, file, before) } else { Ok(()) }
    });
    match restored {
        // It was removed just now.
        Err(error) if is_gone(&error) => Ok(()),
        restored => restored,
    }
}

/// Whether somebody has set something of a controller by now, in a cgroup below this one.
fn is_used(cgroup: &Path, controller: &str) -> bool {
    // What the files say that nobody has written to (cgroup-v2.rst).
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

/// Whether a file of a cgroup cannot be used because the cgroup was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Lets a process go on, unless it has ended. One that goes on already only sees a `SIGCONT`, which it may have been
/// on the way to stop without.
fn let_stopped_go(process: &StoppedProcess) {
    if let Some(handle) = Handle::find(process.pid, process.started) {
        // It may have ended meanwhile.
        let _ = handle.signal(Signal::SIGCONT as i32);
    }
}

/// Lets programs go on that were held before their first instruction. They are told from what others have stopped
/// by their vDSO: it is as the kernel made it, while every other process of the target has it patched. (A program
/// is let go on before it is patched, see `Patcher::patch_held`.)
///
/// One that was just being held, or patched, stops only when it gets a processor; so they are looked for for a while.
fn let_go(cgroup: &Path) {
    let end = Instant::now() + SETTLING;
    loop {
        for pid in processes_below(cgroup) {
            // It is this one, or none, however soon its number is another's.
            let Some(process) = Handle::open(pid) else { continue };
            if process.is_stopped() && matches!(vdso::owner_of(pid), Ok(None)) {
                // It may have ended meanwhile.
                let _ = process.signal(Signal::SIGCONT as i32);
            }
        }
        if Instant::now() > end {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sets a setting back, unless someone has changed it since.
fn restore_sysctl(netns: u64, name: &str, before: &str, after: &str) -> io::Result<()> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    match sysctl::get(&netns, name).map_err(io::Error::other)? {
        Ok(current) if current == after => {
            sysctl::set(&netns, name, before).map_err(io::Error::other)?
        }
        // It is no longer ours, or no longer there.
        _ => Ok(()),
    }
}

/// Moves the processes of a cgroup back to where they came from, then removes it. Cgroups below it were made by others:
/// as long as there are processes in one of them, all of them stay, and so does this one.
fn remove_cgroup(path: &Path, home: &Path, inode: Option<u64>) -> io::Result<Undone> {
    if !path.exists() || inode.is_some_and(|inode| !is_same(path, inode)) {
        return Ok(Undone::Done);
    }
    // Home may have been removed meanwhile; what it was in has not, or has a parent that has not.
    let home = home.ancestors().find(|cgroup| cgroup.join("cgroup.procs").exists()).unwrap_or(home);
    let end = Instant::now() + PATIENCE;
    loop {
        let processes = processes_in(path);
        for pid in &processes {
            // A process that is gone need not be moved; one that cannot be shows in the removal.
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
                // Processes of another PID namespace cannot be moved from here, nor seen.
                let is_in_use = processes.is_empty() && says(path, "populated 1");
                return if is_in_use { Ok(Undone::InUse) } else { Err(error) };
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(Undone::Done),
        }
    }
}

/// Whether a journal says that a cgroup below this one was made, and it is there.
fn is_announced_below(path: &Path) -> bool {
    journal::announced().any(|action| match action {
        Action::MakeCgroup { path: other, inode, .. } => {
            let is_there = inode.map_or_else(|| other.exists(), |inode| is_same(&other, inode));
            other != path && other.starts_with(path) && is_there
        }
        _ => false,
    })
}
