//! tc filters under a clsact qdisc: what tcx is for kernels before 6.6.
//!
//! No file descriptor owns them, so whoever makes them must journal that first; here is only how they
//! are made and removed, by another process if need be.

use std::io;

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use injector_common::packet::Direction;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle as Parent, TcMessage},
    },
};

use super::{
    KernelError,
    interface::{Interface, block_on, execute, failed, list_qdiscs},
    netns::Netns,
};

const KIND: &str = "clsact";

/// Where injector's filters are among others: after those that choose a number, before those that do not.
const PRIORITY: u16 = 0xbeef;

/// `ETH_P_ALL` in network byte order, as tc messages have it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Whether an interface has a clsact qdisc.
pub fn has_qdisc(netns: &Netns, interface: u32) -> Result<bool, KernelError> {
    netns.run(|| block_on(async |handle| find_qdisc(&handle, interface).await))?
}

/// Adds a clsact qdisc to an interface that has none.
pub fn add_qdisc(netns: &Netns, interface: &Interface) -> io::Result<()> {
    let add = || qdisc_add_clsact(&interface.name).map_err(io::Error::other);
    netns.run(add).map_err(io::Error::other)?
}

/// Attaches a program; `handle` tells its filter from those of other injectors.
pub fn add_filter(
    program: &mut SchedClassifier,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
    handle: u16,
) -> Result<(), KernelError> {
    let side = match direction {
        Direction::Egress => TcAttachType::Egress,
        Direction::Ingress => TcAttachType::Ingress,
    };
    let fail = |source: ProgramError| KernelError::Attach {
        interface: interface.name.clone(),
        hook: format!("clsact {direction:?}").to_lowercase(),
        source: source.into(),
    };
    let handle = TcHandle::new(0, handle);
    let options = NlOptions { priority: PRIORITY, handle, ..NlOptions::default() };
    let attach = || {
        let id = program.attach_with_options(
            &interface.name,
            side,
            TcAttachOptions::Netlink(options),
        )?;
        program.take_link(id)
    };
    let link = netns.run(attach)?.map_err(fail)?;
    // Dropping it would remove the filter in whatever namespace the thread is then; the journal does it.
    std::mem::forget(link);
    Ok(())
}

/// Removes the filter, if it, its interface and its namespace are there.
pub fn remove_filter(
    netns: u64,
    interface: u32,
    direction: Direction,
    handle: u16,
) -> Result<(), KernelError> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    netns.run(|| {
        block_on(async |netlink| {
            let mut message = TcMessage::default();
            message.header.index = interface.cast_signed();
            message.header.handle = u32::from(handle).into();
            message.header.parent = parent(direction);
            message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
            let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
            match execute(netlink, request, "removing a filter").await {
                Err(KernelError::Request { source, .. })
                    if matches!(&*source, rtnetlink::Error::NetlinkError(error) if is_gone(error.raw_code())) =>
                {
                    Ok(())
                }
                result => result,
            }
        })
    })?
}

/// Removes the clsact qdisc of an interface, unless others have filters there by now.
pub fn remove_qdisc_if_empty(netns: u64, interface: u32) -> Result<(), KernelError> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    netns.run(|| {
        block_on(async |handle| {
            if !find_qdisc(&handle, interface).await? {
                return Ok(());
            }
            for direction in [Direction::Egress, Direction::Ingress] {
                let filters = handle.traffic_filter(interface.cast_signed()).get();
                let filters = match direction {
                    Direction::Egress => filters.egress(),
                    Direction::Ingress => filters.ingress(),
                };
                let filters: Vec<TcMessage> = filters
                    .execute()
                    .boxed()
                    .try_collect()
                    .await
                    .map_err(failed("listing filters"))?;
                if !filters.is_empty() {
                    return Ok(());
                }
            }
            let mut request = handle.qdisc().del(interface.cast_signed());
            request.message_mut().header.parent = Parent::CLSACT;
            match request.execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if is_gone(error.raw_code()) => Ok(()),
                result => result.map_err(failed("removing a clsact qdisc")),
            }
        })
    })?
}

async fn find_qdisc(handle: &Handle, interface: u32) -> Result<bool, KernelError> {
    let qdiscs = list_qdiscs(handle).await?;
    Ok(qdiscs.iter().any(|qdisc| {
        qdisc.header.index == interface.cast_signed()
            && qdisc
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == KIND))
    }))
}

const fn parent(direction: Direction) -> Parent {
    let minor = match direction {
        Direction::Egress => Parent::MIN_EGRESS,
        Direction::Ingress => Parent::MIN_INGRESS,
    };
    Parent { major: 0xffff, minor }
}

/// Whether an error says that there is nothing to remove: no interface, no filter, or no qdisc to look for
/// one in.
const fn is_gone(code: i32) -> bool {
    matches!(-code, libc::ENODEV | libc::ENOENT | libc::EINVAL)
}
