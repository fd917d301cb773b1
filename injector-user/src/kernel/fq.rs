//! The `sch_fq` qdisc, which releases each packet at its timestamp (tc-fq(8)).

use rtnetlink::{
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2},
    },
};

use super::{
    KernelError,
    interface::{block_on, execute, list_qdiscs},
    netns::Netns,
};

/// The kind of the qdisc.
pub const KIND: &str = "fq";

/// Attributes of `TCA_OPTIONS` (`linux/pkt_sched.h`).
mod option {
    pub const LIMIT: u16 = 1;
    pub const FLOW_LIMIT: u16 = 2;
    pub const QUANTUM: u16 = 3;
    pub const INITIAL_QUANTUM: u16 = 4;
    pub const RATE_ENABLE: u16 = 5;
    pub const BUCKETS_LOG: u16 = 8;
    pub const ORPHAN_MASK: u16 = 10;
    pub const TIMER_SLACK: u16 = 13;
    pub const HORIZON: u16 = 14;
}

/// The quantum in bytes: at least the maximum packet size.
const QUANTUM: u32 = 1 << 18;

/// The maximum time until a packet is due, in microseconds: more than the longest delay and queue.
const HORIZON_US: u32 = 4_000_000_000;

/// The bits of a packet's hash that are the number of its queue, see `injector_common::hold::Lane`.
const ORPHAN_MASK: u32 = 0xffff;

/// The logarithm of the number of trees in which fq looks for queues.
const BUCKETS_LOG: u32 = 12;

/// The maximum lateness in nanoseconds, which coalesces timer interrupts.
const TIMER_SLACK_NS: u32 = 1000;

/// Statistics of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets dropped because the queue was full.
    pub dropped: u64,
    /// Packets queued now.
    pub held: u64,
}

/// Makes fq the root qdisc of a hold device, with a capacity of `limit` packets.
pub fn add(netns: &Netns, interface: u32, limit: u32) -> Result<(), KernelError> {
    netns.run(|| block_on(async |handle| add_here(&handle, interface, limit).await))?
}

async fn add_here(
    handle: &rtnetlink::Handle,
    interface: u32,
    limit: u32,
) -> Result<(), KernelError> {
    let options = [
        (option::LIMIT, limit),
        (option::FLOW_LIMIT, limit),
        (option::QUANTUM, QUANTUM),
        (option::INITIAL_QUANTUM, QUANTUM),
        // Pacing rates of sockets do not apply to held packets.
        (option::RATE_ENABLE, 0),
        (option::BUCKETS_LOG, BUCKETS_LOG),
        (option::ORPHAN_MASK, ORPHAN_MASK),
        (option::TIMER_SLACK, TIMER_SLACK_NS),
        (option::HORIZON, HORIZON_US),
    ];
    let options = options
        .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec())));
    let mut message = TcMessage::default();
    message.header.index = interface.cast_signed();
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes.push(TcAttribute::Kind(KIND.into()));
    message.attributes.push(TcAttribute::Options(options.into()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    execute(handle.clone(), request, "adding the fq qdisc").await
}

/// The original root qdisc of a device: its kind and settings, which other processes may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    kind: Option<String>,
    settings: Vec<TcOption>,
}

impl Root {
    /// Whether the kind matches.
    #[must_use]
    pub fn is(&self, kind: Option<&str>) -> bool {
        self.kind.as_deref().is_none_or(|own| kind == Some(own))
    }

    /// The current root qdisc of a device.
    pub fn of(netns: &Netns, interface: u32) -> Result<Self, KernelError> {
        let mut root = Self::default();
        for attribute in root_qdisc(netns, interface)? {
            match attribute {
                TcAttribute::Kind(kind) => root.kind = Some(kind),
                TcAttribute::Options(settings) => root.settings = settings,
                _ => {}
            }
        }
        Ok(root)
    }

    /// Restores the settings of a device's root qdisc of the same kind, keeping queued packets.
    pub fn restore(&self, netns: &Netns, interface: u32) -> Result<(), KernelError> {
        let mut message = TcMessage::default();
        message.header.index = interface.cast_signed();
        message.header.parent = TcHandle::ROOT;
        message.attributes.extend(self.kind.clone().map(TcAttribute::Kind));
        message.attributes.push(match &*self.settings {
            // Settings of most kinds are kept unparsed, including their header.
            [TcOption::Other(settings)] => TcAttribute::Other(settings.clone()),
            settings => TcAttribute::Options(settings.to_vec()),
        });
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let what = "restoring the settings of a qdisc";
        netns.run(|| block_on(async |handle| execute(handle, request, what).await))?
    }
}

/// What the kernel says of the root qdisc of a device.
fn root_qdisc(netns: &Netns, interface: u32) -> Result<Vec<TcAttribute>, KernelError> {
    let qdiscs = netns.run(|| block_on(async |handle| list_qdiscs(&handle).await))??;
    // The kernel lists those of all devices, whatever is asked.
    let of_root = qdiscs.into_iter().filter(|qdisc| {
        qdisc.header.index == interface.cast_signed() && qdisc.header.parent == TcHandle::ROOT
    });
    Ok(of_root.flat_map(|qdisc| qdisc.attributes).collect())
}

/// What the root qdisc of a device did and does.
pub fn statistics(netns: &Netns, interface: u32) -> Result<Statistics, KernelError> {
    let attributes = root_qdisc(netns, interface)?;
    let queues = attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Stats2(all) => all.iter().find_map(|one| match one {
            TcStats2::Queue(queue) => Some(queue),
            _ => None,
        }),
        _ => None,
    });
    let mut sum = Statistics::default();
    for queue in queues {
        sum.dropped += u64::from(queue.drops);
        sum.held += u64::from(queue.qlen);
    }
    Ok(sum)
}

/// Checks that this kernel has fq, in a temporary namespace.
pub fn probe() -> Result<(), KernelError> {
    const LOOPBACK: u32 = 1;
    Netns::scratch(|| block_on(async |handle| add_here(&handle, LOOPBACK, 1).await))
}
