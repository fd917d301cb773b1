//! Attaching programs to interfaces.
//!
//! By tcx and XDP, whose attachments are owned by `bpf_link` file descriptors: they end with this
//! process, however it ends. For kernels before 6.6 there is [`super::clsact`].

use std::fmt::{self, Display, Formatter};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, XdpMode,
    tc::{SchedClassifierLink, TcAttachOptions},
    xdp::XdpLink,
};
use aya::sys::SyscallError;
use injector_common::packet::{Direction, parse::Link};

use super::{
    KernelError, clsact, device::Identity, interface::Interface, netns::Netns, object::Object,
};

/// Where a program is attached.
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

/// What owns an attachment by tcx or XDP. Dropping it detaches the program.
#[derive(Debug)]
pub enum OwnedLink {
    /// By tcx.
    Tc(SchedClassifierLink),
    /// By XDP.
    Xdp(XdpLink),
}

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
    tcx_program(program, netns, &interface.name, direction)
}

fn tcx_program(
    program: &mut SchedClassifier,
    netns: &Netns,
    interface: &str,
    direction: Direction,
) -> Result<OwnedLink, KernelError> {
    let side = match direction {
        Direction::Egress => TcAttachType::Egress,
        Direction::Ingress => TcAttachType::Ingress,
    };
    let attach = || {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(interface, side, order)?;
        program.take_link(id)
    };
    netns.run(attach)?.map(OwnedLink::Tc).map_err(|source| KernelError::Attach {
        interface: interface.into(),
        hook: format!("tcx {direction:?}").to_lowercase(),
        source: source.into(),
    })
}

/// Attaches a program to a device of our own, by tcx, or below a clsact qdisc, which goes with the device.
pub fn own(
    object: &mut Object,
    netns: &Netns,
    device: &Identity,
    program: &'static str,
    direction: Direction,
) -> Result<Option<OwnedLink>, KernelError> {
    let program = object.classifier(program)?;
    match tcx_program(program, netns, &device.name, direction) {
        Ok(link) => Ok(Some(link)),
        Err(error) if is_unknown(&error) => {
            let (index, name) = (device.index, device.name.clone());
            let interface = Interface {
                index,
                name,
                is_loopback: false,
                is_up: true,
                link: Some(Link::Ethernet),
            };
            clsact::add_qdisc(netns, &interface).map_err(KernelError::Thread)?;
            clsact::add_filter(program, netns, &interface, direction, 1)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether an error of [`tcx`] says that the kernel does not know tcx.
#[must_use]
pub fn is_unknown(error: &KernelError) -> bool {
    let KernelError::Attach { source, .. } = error else { return false };
    matches!(&**source, ProgramError::SyscallError(SyscallError { io_error, .. })
        if io_error.raw_os_error() == Some(libc::EINVAL))
}

/// Attaches the XDP program, in the driver where it can, else in the generic receive path.
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
    let mode = if hook == Hook::XdpNative { XdpMode::Driver } else { XdpMode::Skb };
    let program = object.xdp("xdp_ingress")?;
    let attach = || {
        let id = program.attach_to_if_index(interface.index, mode)?;
        program.take_link(id)
    };
    netns.run(attach)?.map(OwnedLink::Xdp).map_err(|source| KernelError::Attach {
        interface: interface.name.clone(),
        hook: hook.to_string(),
        source: source.into(),
    })
}
