//! Attaching programs to interfaces.
//!
//! tcx and XDP attachments are owned by `bpf_link` file descriptors: they end with this process,
//! however it ends. clsact filters, for kernels before 6.6, are not.

use std::fmt::{self, Display, Formatter};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType, XdpMode,
    tc::{SchedClassifierLink, TcAttachOptions},
    xdp::XdpLink,
};
use injector_common::packet::{Direction, parse::Link};

use super::{KernelError, interface::Interface, netns::Netns, object::Object};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tcx (Linux 6.6).
    Tcx,
    /// XDP in the driver.
    XdpNative,
    /// XDP in the kernel's generic receive path.
    XdpGeneric,
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
        })
    }
}

/// A program attached to an interface. Dropping it detaches the program.
#[derive(Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// The namespace.
    pub netns: Netns,
    /// Which packets it sees.
    pub direction: Direction,
    /// Where.
    pub hook: Hook,
    /// Held for its `Drop`.
    _link: OwnedLink,
}

#[derive(Debug)]
enum OwnedLink {
    Tc { _link: SchedClassifierLink },
    Xdp { _link: XdpLink },
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

/// Attaches the tc program of one direction to an interface of `netns`, ahead of other programs.
pub fn tc(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
) -> Result<Attachment, KernelError> {
    let program = object.classifier(program(interface, direction))?;
    netns.run(|| tcx(program, netns, interface, direction))?
}

fn tcx(
    program: &mut SchedClassifier,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
) -> Result<Attachment, KernelError> {
    let side = match direction {
        Direction::Egress => TcAttachType::Egress,
        Direction::Ingress => TcAttachType::Ingress,
    };
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let link = program
        .attach_with_options(&interface.name, side, order)
        .and_then(|id| program.take_link(id))
        .map_err(|source| KernelError::Attach {
            interface: interface.name.clone(),
            hook: format!("tcx {direction:?}").to_lowercase(),
            source: source.into(),
        })?;
    Ok(Attachment {
        interface: interface.clone(),
        netns: netns.clone(),
        direction,
        hook: Hook::Tcx,
        _link: OwnedLink::Tc { _link: link },
    })
}

/// Attaches the XDP program, in the driver where it can, else in the generic receive path.
pub fn xdp(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
) -> Result<Attachment, KernelError> {
    let native = xdp_in(object, netns, interface, Hook::XdpNative);
    let Err(why_not_native) = native else { return native };
    tracing::debug!(interface = interface.name, error = %why_not_native, "no native XDP");
    xdp_in(object, netns, interface, Hook::XdpGeneric)
}

/// Attaches the XDP program at one of the two XDP hooks.
pub(super) fn xdp_in(
    object: &mut Object,
    netns: &Netns,
    interface: &Interface,
    hook: Hook,
) -> Result<Attachment, KernelError> {
    let mode = if hook == Hook::XdpNative { XdpMode::Driver } else { XdpMode::Skb };
    let program = object.xdp("xdp_ingress")?;
    let link = netns.run(|| {
        program
            .attach_to_if_index(interface.index, mode)
            .and_then(|id| program.take_link(id))
            .map_err(|source| KernelError::Attach {
                interface: interface.name.clone(),
                hook: hook.to_string(),
                source: source.into(),
            })
    })??;
    Ok(Attachment {
        interface: interface.clone(),
        netns: netns.clone(),
        direction: Direction::Ingress,
        hook,
        _link: OwnedLink::Xdp { _link: link },
    })
}
