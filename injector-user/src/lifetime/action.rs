//! What the kernel does not undo by itself when we die.

use std::{
    fmt::{self, Display, Formatter},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use injector_common::packet::Direction;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::journal;
use crate::{
    kernel::{
        clsact,
        device::{self, Identity},
        netns::Netns,
        sysctl, vdso,
    },
    target::cgroup::{for_each_below, processes_below},
};

/// Something done to the machine, with all that is needed to undo it. Undoing is idempotent, and right
/// as well if the thing was not done yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// A cgroup was made.
    MakeCgroup {
        /// Its directory.
        path: PathBuf,
        /// The cgroup that its processes came from, and to which they go back.
        home: PathBuf,
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
        handle: u16,
    },
    /// A network device was made.
    AddDevice {
        /// Inode of the network namespace.
        netns: u64,
        /// Index of the device.
        interface: u32,
        /// Its name.
        name: String,
    },
    /// The clocks of a cgroup's processes were made to go wrong, and new programs are held at times.
    SkewClocks {
        /// Who patched their vDSO.
        owner: u64,
        /// The cgroup's directory.
        cgroup: PathBuf,
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

/// How long a process that has been stopped may take until it does stop.
const SETTLING: Duration = Duration::from_millis(300);

/// Processes that exit keep their cgroup busy for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

impl Action {
    /// Undoes it.
    pub fn undo(&self) -> io::Result<()> {
        match self {
            Self::MakeCgroup { path, home } => remove_cgroup(path, home),
            Self::AddClsact { netns, interface, .. } => {
                clsact::remove_qdisc_if_empty(*netns, *interface).map_err(io::Error::other)
            }
            Self::AddFilter { netns, interface, egress, handle, .. } => {
                let direction = if *egress { Direction::Egress } else { Direction::Ingress };
                clsact::remove_filter(*netns, *interface, direction, *handle)
                    .map_err(io::Error::other)
            }
            Self::AddDevice { netns, interface, name } => {
                let identity = Identity { name: name.clone(), index: *interface };
                device::remove(*netns, &identity).map_err(io::Error::other)
            }
            Self::SkewClocks { owner, cgroup } => {
                let_go(cgroup);
                vdso::restore_all(*owner)
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
            Self::SetSysctl { name, before, after, .. } => {
                write!(f, "setting /proc/sys/net/{name} from {before} to {after}")
            }
        }
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
            let is_stopped = Process::new(pid)
                .and_then(|process| process.stat())
                .is_ok_and(|stat| stat.state == 'T');
            if is_stopped && matches!(vdso::owner_of(pid), Ok(None)) {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
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

/// Moves the processes of the cgroup back to where they came from, then removes it.
fn remove_cgroup(path: &Path, home: &Path) -> io::Result<()> {
    // Home may have been removed meanwhile; what it was in has not, or has a parent that has not.
    let home = home.ancestors().find(|cgroup| cgroup.join("cgroup.procs").exists()).unwrap_or(home);
    let end = Instant::now() + PATIENCE;
    loop {
        for pid in processes_below(path) {
            // A process that is gone need not be moved; one that cannot be shows in the removal.
            let _ = fs::write(home.join("cgroup.procs"), pid.to_string());
        }
        match for_each_below(path, &mut |cgroup| match fs::remove_dir(cgroup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }) {
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(()),
        }
    }
}
