//! tc filters below a clsact qdisc, for kernels before 6.6, which lack tcx.
//!
//! No file descriptor owns filters, so the caller must journal them first. Any process can remove them
//! by their identity.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::programs::{ProgramError, SchedClassifier};
use futures_util::{StreamExt as _, TryStreamExt as _};
use injector_common::packet::Direction;
use rtnetlink::{
    Handle,
    packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcFilterBpfOption, TcHandle as Parent, TcMessage, TcOption},
    },
};

use super::{
    KernelError,
    interface::{Interface, block_on, execute, failed, list_qdiscs},
    netns::Netns,
};

const KIND: &str = "clsact";

/// The kind of eBPF filters.
const BPF: &str = "bpf";

/// The priority of injector's filters if there are no others: before those that the kernel assigns
/// (from 0xc000 downwards). People rarely choose it, as filters of one priority must have one kind.
pub const PRIORITY: u16 = 0xbee;

/// The priority of filters of injector 0.1.0, which its journals may contain.
pub const OLD_PRIORITY: u16 = 0xbeef;

/// The prefix of injector's handles, followed by the slot. The kernel assigns handles from 1.
const HANDLE: u32 = 0x696e_6a00;

/// `ETH_P_ALL` in network byte order, as in tc messages.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// The place of a filter among those of one direction of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The priority; lower ones run first.
    pub priority: u16,
    /// The handle, unique within the priority.
    pub handle: u32,
}

/// A filter, injector's or foreign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its kind, such as `u32` or `bpf`.
    pub kind: String,
    /// The place.
    pub place: Place,
    /// The `ETH_P_*` of the packets.
    pub protocol: u16,
    /// The ID of its eBPF program, if any.
    pub program: Option<u32>,
}

impl Filter {
    /// Whether it belongs to an injector.
    #[must_use]
    pub fn is_injectors(&self) -> bool {
        self.kind == BPF && self.place.handle & !0xff == HANDLE
    }

    /// Whether injector's filter can have the same priority, and then runs first.
    fn can_share(&self) -> bool {
        self.kind == BPF && self.protocol == u16::from_be(ALL_PROTOCOLS)
    }
}

/// The handle of the filters of the injector in this slot.
#[must_use]
pub const fn handle(slot: u32) -> u32 {
    HANDLE | (slot & 0xff)
}

/// The priority for a filter of injector, given all filters of a direction in the order in which they
/// run: ahead of all foreign ones if possible.
#[must_use]
pub fn priority(filters: &[Filter]) -> u16 {
    let foreign = || filters.iter().filter(|filter| !filter.is_injectors());
    let Some(first) = foreign().next() else {
        let ours = filters.iter().map(|filter| filter.place.priority).min();
        return ours.unwrap_or(PRIORITY);
    };
    match first.place.priority {
        1 if first.can_share() => 1,
        // Nothing can run before it.
        1 => {
            let is_free = |priority: &u16| {
                foreign().all(|filter| filter.place.priority != *priority || filter.can_share())
            };
            (2..u16::MAX).find(is_free).unwrap_or(PRIORITY)
        }
        first => PRIORITY.min(first - 1),
    }
}

/// The filters of chain 0 of each hook (interface and direction), in the order in which they run.
pub fn filters(netns: &Netns, hooks: &[(u32, Direction)]) -> Result<Vec<Vec<Filter>>, KernelError> {
    netns.run(|| {
        block_on(async |netlink| {
            let mut all = Vec::new();
            for &(interface, direction) in hooks {
                all.push(list(&netlink, interface, direction).await?);
            }
            Ok(all)
        })
    })?
}

async fn list(
    netlink: &Handle,
    interface: u32,
    direction: Direction,
) -> Result<Vec<Filter>, KernelError> {
    let filters = list_all(netlink, interface, direction).await?;
    Ok(filters.into_iter().filter_map(filter).collect())
}

/// The filters of all chains.
async fn list_all(
    netlink: &Handle,
    interface: u32,
    direction: Direction,
) -> Result<Vec<TcMessage>, KernelError> {
    let filters = netlink.traffic_filter(interface.cast_signed()).get();
    let filters = match direction {
        Direction::Egress => filters.egress(),
        Direction::Ingress => filters.ingress(),
    };
    match filters.execute().boxed().try_collect().await {
        Err(rtnetlink::Error::NetlinkError(error)) if is_gone(error.raw_code()) => Ok(Vec::new()),
        filters => filters.map_err(failed("listing filters")),
    }
}

/// Converts a filter; `None` for the head entry of a priority and for filters of other chains.
fn filter(message: TcMessage) -> Option<Filter> {
    let (mut kind, mut program) = (None, None);
    for attribute in message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = Some(name),
            TcAttribute::Options(options) => {
                program = options.into_iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
                    _ => None,
                });
            }
            TcAttribute::Chain(number) if number != 0 => return None,
            _ => {}
        }
    }
    let (kind, info) = (kind?, message.header.info);
    let handle = u32::from(message.header.handle);
    let place = Place { priority: (info >> 16) as u16, handle };
    let filter = Filter { kind, place, protocol: u16::from_be(info as u16), program };
    (handle != 0).then_some(filter)
}

/// Attributes of `TCA_OPTIONS` of eBPF filters (`linux/pkt_cls.h`).
mod option {
    pub const FD: u16 = 6;
    pub const NAME: u16 = 7;
    pub const FLAGS: u16 = 8;
    /// The program's result is the verdict on the packet.
    pub const DIRECT_ACTION: u32 = 1;
}

/// Whether an interface has a clsact qdisc.
pub fn has_qdisc(netns: &Netns, interface: u32) -> Result<bool, KernelError> {
    netns.run(|| block_on(async |handle| find_qdisc(&handle, interface).await))?
}

/// Adds a clsact qdisc to an interface that has none.
pub fn add_qdisc(netns: &Netns, interface: &Interface) -> io::Result<()> {
    let mut message = TcMessage::default();
    message.header.index = interface.index.cast_signed();
    message.header.parent = Parent::CLSACT;
    message.header.handle = Parent { major: 0xffff, minor: 0 };
    message.attributes.push(TcAttribute::Kind(KIND.into()));
    let request = RouteNetlinkMessage::NewQueueDiscipline(message);
    create(netns, request, "adding a clsact qdisc").map_err(io::Error::other)
}

/// Attaches a program, by the interface's index, since the name may belong to another one by now.
pub fn add_filter(
    program: &SchedClassifier,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
    place: Place,
) -> Result<(), KernelError> {
    let fail = |source: ProgramError| KernelError::Attach {
        interface: interface.name.clone(),
        hook: format!("clsact {direction:?}").to_lowercase(),
        source: source.into(),
    };
    let fd = program.fd().map_err(fail)?.as_fd().as_raw_fd();
    let options = [
        (option::FD, fd.to_ne_bytes().to_vec()),
        (option::NAME, c"injector".to_bytes_with_nul().to_vec()),
        (option::FLAGS, option::DIRECT_ACTION.to_ne_bytes().to_vec()),
    ];
    let options = options.map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
    let mut message = TcMessage::default();
    message.header.index = interface.index.cast_signed();
    message.header.handle = place.handle.into();
    message.header.parent = parent(direction);
    message.header.info = u32::from(place.priority) << 16 | u32::from(ALL_PROTOCOLS);
    message.attributes.push(TcAttribute::Kind(BPF.into()));
    message.attributes.push(TcAttribute::Options(options.into()));
    create(netns, RouteNetlinkMessage::NewTrafficFilter(message), "adding a tc filter")
}

/// Creates an object that must not exist yet.
fn create(
    netns: &Netns,
    message: RouteNetlinkMessage,
    what: &'static str,
) -> Result<(), KernelError> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    netns.run(|| block_on(async |handle| execute(handle, request, what).await))?
}

/// Removes the filter, if it still exists. If `program` is known, a filter of another program is kept:
/// it belongs to another process.
pub fn remove_filter(
    netns: u64,
    interface: u32,
    direction: Direction,
    place: Place,
    program: Option<u32>,
) -> Result<(), KernelError> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    netns.run(|| {
        block_on(async |netlink| {
            if program.is_some() {
                let there = list(&netlink, interface, direction).await?;
                if !there.iter().any(|filter| filter.place == place && filter.program == program) {
                    return Ok(());
                }
            }
            let mut message = TcMessage::default();
            message.header.index = interface.cast_signed();
            message.header.handle = place.handle.into();
            message.header.parent = parent(direction);
            message.header.info = u32::from(place.priority) << 16 | u32::from(ALL_PROTOCOLS);
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

/// Removes the clsact qdisc of an interface unless it has foreign filters.
pub fn remove_qdisc_if_empty(netns: u64, interface: u32) -> Result<(), KernelError> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    netns.run(|| {
        block_on(async |handle| {
            if !find_qdisc(&handle, interface).await? {
                return Ok(());
            }
            for direction in [Direction::Egress, Direction::Ingress] {
                let filters = list_all(&handle, interface, direction).await?;
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

/// Whether an error means that there is nothing to remove: no interface, no filter, or no qdisc.
const fn is_gone(code: i32) -> bool {
    matches!(-code, libc::ENODEV | libc::ENOENT | libc::EINVAL)
}
