//! Attaches programs to interfaces by tcx and XDP.
//!
//! Attachments are owned by `bpf_link` file descriptors, so they end with this process, however it
//! ends. [`super::clsact`] serves kernels before 6.6.

use std::{
    fmt::{self, Display, Formatter},
    io,
    os::fd::AsFd as _,
};

use aya::{
    programs::{ProgramError, SchedClassifier},
    sys::SyscallError,
};
use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE,
    bpf_attach_type::{self, BPF_TCX_EGRESS, BPF_TCX_INGRESS},
};
use injector_common::packet::{Direction, parse::Link};

use super::{
    KernelError, clsact,
    device::Identity,
    interface::Interface,
    link::{self, Link as OwnedLink},
    netns::Netns,
    object::Object,
};

/// The hook at which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tcx (Linux 6.6).
    Tcx,
    /// A filter below a clsact qdisc.
    Clsact,
    /// XDP in the driver.
    XdpNative,
    /// XDP in the kernel's generic receive path.
    XdpGeneric,
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
        })
    }
}

/// The names of injector's tc programs on interfaces.
const PROGRAMS: [&str; 4] = ["tc_egress", "tc_ingress", "tc_egress_raw", "tc_ingress_raw"];

/// The tc program for one direction of an interface.
#[must_use]
pub const fn program(interface: &Interface, direction: Direction) -> &'static str {
    match (direction, interface.link) {
        (Direction::Egress, Some(Link::None)) => "tc_egress_raw",
        (Direction::Ingress, Some(Link::None)) => "tc_ingress_raw",
        (Direction::Egress, _) => "tc_egress",
        (Direction::Ingress, _) => "tc_ingress",
    }
}

/// Attaches the tc program of one direction to an interface of `netns` by tcx, ahead of other programs.
pub fn tcx(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
) -> Result<OwnedLink, KernelError> {
    let program = object.classifier(program(interface, direction))?;
    tcx_program(program, netns, interface.index, &interface.name, direction)
}

const fn side(direction: Direction) -> bpf_attach_type {
    match direction {
        Direction::Egress => BPF_TCX_EGRESS,
        Direction::Ingress => BPF_TCX_INGRESS,
    }
}

fn tcx_program(
    program: &SchedClassifier,
    netns: &Netns,
    index: u32,
    name: &str,
    direction: Direction,
) -> Result<OwnedLink, KernelError> {
    let attach = || {
        let program = program.fd()?.as_fd();
        OwnedLink::tcx(program, index, side(direction)).map_err(refused)
    };
    netns.run(attach)?.map_err(|source| KernelError::Attach {
        interface: name.into(),
        hook: format!("tcx {direction:?}").to_lowercase(),
        source: source.into(),
    })
}

fn refused(io_error: io::Error) -> ProgramError {
    SyscallError { call: "bpf_link_create", io_error }.into()
}

/// The state of injector's program at a tcx hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcxState {
    /// Whether it is attached.
    pub is_attached: bool,
    /// The IDs of foreign programs that run before it.
    pub ahead: Vec<u32>,
}

/// Queries the tcx hooks of interfaces of one namespace. Each hook is given with the ID of
/// injector's link, or 0 if injector is attached elsewhere, so that all programs run before it.
/// Interfaces that are gone yield `None`.
pub fn query_tcx(
    netns: &Netns,
    hooks: &[(u32, Direction, u32)],
) -> Result<Vec<Option<TcxState>>, KernelError> {
    netns.run(|| {
        let query = |&(interface, direction, own): &(u32, Direction, u32)| {
            let programs = match link::query(interface, side(direction)) {
                Ok(programs) => programs,
                Err(error) => {
                    tracing::debug!(interface, %error, "cannot query tcx programs");
                    return None;
                }
            };
            let place = programs.iter().position(|attached| attached.link == own && own != 0);
            let before = programs.iter().take(place.unwrap_or(programs.len()));
            let ahead = before.map(|attached| attached.program).filter(|&id| is_foreign(id));
            Some(TcxState { is_attached: place.is_some(), ahead: ahead.collect() })
        };
        hooks.iter().map(query).collect()
    })
}

/// Whether a program exists and is not injector's.
fn is_foreign(program: u32) -> bool {
    link::program_name(program).is_some_and(|name| !PROGRAMS.contains(&name.as_str()))
}

/// The place of the filter on a hold device.
pub const OWN_PLACE: clsact::Place = clsact::Place { priority: clsact::PRIORITY, handle: 1 };

/// Attaches a program to a hold device by tcx, or else by clsact, which is removed with the device.
pub fn own(
    object: &mut Object,
    netns: &Netns,
    device: &Identity,
    program: &'static str,
    direction: Direction,
) -> Result<Option<OwnedLink>, KernelError> {
    let program = object.classifier(program)?;
    match tcx_program(program, netns, device.index, &device.name, direction) {
        Ok(link) => Ok(Some(link)),
        Err(error) if is_unknown(&error) => {
            let (index, name) = (device.index, device.name.clone());
            let interface = Interface {
                index,
                name,
                is_loopback: false,
                is_up: true,
                link: Some(Link::Ethernet),
                qdisc: None,
            };
            clsact::add_qdisc(netns, &interface).map_err(KernelError::Thread)?;
            clsact::add_filter(program, netns, &interface, direction, OWN_PLACE)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether an error of [`tcx`] means that the kernel does not support tcx.
#[must_use]
pub fn is_unknown(error: &KernelError) -> bool {
    let KernelError::Attach { source, .. } = error else { return false };
    matches!(&**source, ProgramError::SyscallError(SyscallError { io_error, .. })
        if io_error.raw_os_error() == Some(libc::EINVAL))
}

/// Attaches the XDP program, in the driver if supported, else in the generic receive path.
pub fn xdp(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
) -> Result<(OwnedLink, Hook), KernelError> {
    match xdp_in(object, netns, interface, Hook::XdpNative) {
        Ok(link) => Ok((link, Hook::XdpNative)),
        Err(error) => {
            tracing::debug!(interface = interface.name, %error, "no native XDP");
            let link = xdp_in(object, netns, interface, Hook::XdpGeneric)?;
            Ok((link, Hook::XdpGeneric))
        }
    }
}

/// Attaches the XDP program at one of the two XDP hooks.
pub(super) fn xdp_in(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
    hook: Hook,
) -> Result<OwnedLink, KernelError> {
    let flags = if hook == Hook::XdpNative { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
    let program = object.xdp("xdp_ingress")?;
    let attach = || {
        let program = program.fd()?.as_fd();
        OwnedLink::xdp(program, interface.index, flags).map_err(refused)
    };
    netns.run(attach)?.map_err(|source| KernelError::Attach {
        interface: interface.name.clone(),
        hook: hook.to_string(),
        source: source.into(),
    })
}
