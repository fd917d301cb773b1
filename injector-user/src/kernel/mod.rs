//! The only place that talks to the kernel's BPF and netlink interfaces (aya, rtnetlink).

pub mod attach;
mod bpf;
pub mod calls;
pub mod clock;
pub mod clock_probe;
pub mod clsact;
pub mod device;
mod ebpf;
pub mod errno;
pub mod fq;
pub mod hook;
pub mod interface;
pub mod layout;
pub mod limits;
pub mod link;
pub mod mapped;
pub mod memory;
pub mod monitor;
pub mod netns;
pub mod object;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod rps;
pub mod sysctl;
pub mod vdso;

use std::{io, path::PathBuf};

use thiserror::Error;

/// The kernel refused something.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A network namespace cannot be opened.
    #[error("cannot open the network namespace {path}")]
    OpenNetns {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace {netns}")]
    EnterNetns {
        /// Which.
        netns: String,
        /// Why.
        source: nix::Error,
    },
    /// Processes have other numbers here than the kernel tells.
    #[error(
        "processes can be faulted only from the host's PID namespace, where they have the numbers that the kernel tells of: \
         run injector there (a container with --pid host)"
    )]
    PidNamespace,
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// A TAP cannot be made.
    #[error("cannot make a TAP device (/dev/net/tun, CONFIG_TUN)")]
    Tap(#[source] io::Error),
    /// Packets cannot be steered.
    #[error("cannot have packets keep their order between processors (receive packet steering)")]
    Steering(#[source] io::Error),
    /// A netlink request failed.
    #[error("{what} failed")]
    Request {
        /// The request.
        what: String,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
    /// The kernel's type information cannot be used.
    #[error(
        "cannot tell the receiver of a packet by its cgroup on this kernel, which requires Linux 6.1 or later with \
         CONFIG_DEBUG_INFO_BTF (--direction egress does not)"
    )]
    Layout(#[from] layout::LayoutError),
    /// The eBPF object was refused.
    #[error("the kernel refused the eBPF object (`injector doctor` says what works here)")]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel's verifier refused the eBPF program {program}: {reason}")]
    Refused {
        /// Its name.
        program: String,
        /// What the verifier said last.
        reason: String,
        /// The error number.
        source: io::Error,
    },
    /// A program was refused.
    #[error(
        "the kernel refused the eBPF program {program} (`injector doctor` says what works here)"
    )]
    Program {
        /// Its name.
        program: String,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program cannot be attached.
    #[error("cannot attach to {interface} at {hook} (`injector doctor` says what works here)")]
    Attach {
        /// The interface.
        interface: String,
        /// The hook.
        hook: String,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map operation failed.
    #[error("cannot access the eBPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: Box<aya::maps::MapError>,
    },
    /// A map cannot be mapped into memory.
    #[error("cannot map the eBPF map {map} into memory")]
    Mapping {
        /// Its name.
        map: &'static str,
        /// Why.
        source: nix::Error,
    },
    /// The object lacks what this program was built to find in it.
    #[error("the eBPF object has no {0}; it does not belong to this build of injector")]
    Missing(&'static str),
    /// The log of the eBPF side cannot be read.
    #[error("cannot read the log of the eBPF side")]
    Log(#[source] Box<aya_log::Error>),
}
