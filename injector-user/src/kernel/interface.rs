//! Network interfaces and their link layers.

use std::{collections::BTreeMap, fs, net::IpAddr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use injector_common::packet::parse::Link;
use rtnetlink::{
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        tc::TcMessage,
    },
};

use super::{
    KernelError, device,
    netns::{Netns, in_thread},
    sysctl,
};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is the loopback.
    pub is_loopback: bool,
    /// Whether it is up.
    pub is_up: bool,
    /// The link layer; `None` if it is not supported.
    pub link: Option<Link>,
    /// The kind of its root qdisc, if known.
    pub qdisc: Option<String>,
}

impl Interface {
    /// Whether it is a device that an injector created.
    #[must_use]
    pub fn is_own_device(&self) -> bool {
        is_own_device(&self.name)
    }

    /// Whether the namespace still has it.
    pub fn is_in(&self, netns: &Netns) -> Result<bool, KernelError> {
        Ok(list(netns)?.iter().any(|interface| interface.index == self.index))
    }
}

/// Whether a device of this name is one that an injector created.
#[must_use]
pub fn is_own_device(name: &str) -> bool {
    device::PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// All interfaces of a namespace.
pub fn list(netns: &Netns) -> Result<Vec<Interface>, KernelError> {
    netns.run(|| {
        block_on(async |handle| {
            let messages: Vec<LinkMessage> = handle
                .link()
                .get()
                .execute()
                .boxed()
                .try_collect()
                .await
                .map_err(failed("listing the interfaces"))?;
            Ok(messages.into_iter().filter_map(interface).collect())
        })
    })?
}

/// Removes interfaces that take no packets with loopback addresses.
pub fn retain_local(netns: &Netns, interfaces: &mut Vec<Interface>) -> Result<(), KernelError> {
    let takes = |name: &str| -> Result<bool, KernelError> {
        let setting = sysctl::get(netns, &format!("ipv4/conf/{name}/route_localnet"))?;
        Ok(setting.is_ok_and(|value| value != "0"))
    };
    if interfaces.iter().all(|interface| interface.is_loopback) || takes("all")? {
        return Ok(());
    }
    let mut local = Vec::new();
    for interface in interfaces.drain(..) {
        if interface.is_loopback || takes(&interface.name)? {
            local.push(interface);
        }
    }
    *interfaces = local;
    Ok(())
}

/// The addresses of all interfaces of a namespace.
pub fn addresses(netns: &Netns) -> Result<Vec<IpAddr>, KernelError> {
    netns.run(|| {
        block_on(async |handle| {
            let messages: Vec<AddressMessage> = handle
                .address()
                .get()
                .execute()
                .boxed()
                .try_collect()
                .await
                .map_err(failed("listing the addresses"))?;
            let attributes = messages.into_iter().flat_map(|message| message.attributes);
            // `IFA_ADDRESS` would be the peer's, on a point-to-point link; IPv6 has the one only.
            let mut found: Vec<IpAddr> = attributes
                .filter_map(|attribute| match attribute {
                    AddressAttribute::Local(address)
                    | AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(address),
                    _ => None,
                })
                .collect();
            found.sort_unstable();
            found.dedup();
            Ok(found)
        })
    })?
}

/// Packets that an interface has received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Received packets.
    pub received: u64,
    /// Sent packets.
    pub sent: u64,
}

impl Passed {
    /// Those since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
        }
    }

    /// All of them.
    #[must_use]
    pub const fn sum(self) -> u64 {
        self.received + self.sent
    }
}

/// The packets that each interface of a namespace has received and sent.
pub fn passed(netns: &Netns) -> Result<BTreeMap<String, Passed>, KernelError> {
    let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let table = table.map_err(KernelError::Counters)?;
    let line = |line: &str| {
        // proc_pid_net(5): 8 columns of received packets, then 8 of sent ones; the second counts packets.
        let (name, columns) = line.split_once(':')?;
        let mut columns = columns.split_whitespace();
        let received = columns.nth(1)?.parse().ok()?;
        let sent = columns.nth(7)?.parse().ok()?;
        Some((name.trim().to_owned(), Passed { received, sent }))
    };
    Ok(table.lines().filter_map(line).collect())
}

fn interface(message: LinkMessage) -> Option<Interface> {
    let (mut name, mut qdisc) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Qdisc(kind) => qdisc = Some(kind),
            _ => {}
        }
    }
    let link = match message.header.link_layer_type {
        LinkLayerType::Ether | LinkLayerType::Loopback => Some(Link::Ethernet),
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit => Some(Link::None),
        _ => None,
    };
    Some(Interface {
        index: message.header.index,
        name: name?,
        qdisc,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        link,
    })
}

/// Sends a request and waits for its acknowledgement.
pub(super) async fn execute(
    mut handle: rtnetlink::Handle,
    request: NetlinkMessage<RouteNetlinkMessage>,
    what: &'static str,
) -> Result<(), KernelError> {
    let fail = failed(what);
    let mut answers = handle.request(request).map_err(&fail)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(fail(rtnetlink::Error::NetlinkError(error)));
        }
    }
    Ok(())
}

/// Runs rtnetlink requests in the calling thread's namespace.
pub(super) fn block_on<T: Send>(
    work: impl AsyncFnOnce(rtnetlink::Handle) -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    // Use a thread: the caller may be inside a runtime, which must not be nested.
    in_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(KernelError::Netlink)?;
        runtime.block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(KernelError::Netlink)?;
            tokio::spawn(connection);
            work(handle).await
        })
    })
}

/// All qdiscs of the namespace: the kernel ignores filters by interface.
pub(super) async fn list_qdiscs(handle: &rtnetlink::Handle) -> Result<Vec<TcMessage>, KernelError> {
    let qdiscs = handle.qdisc().get().execute();
    qdiscs.boxed().try_collect().await.map_err(failed("listing qdiscs"))
}

/// A constructor of errors for the request `what`.
pub(super) fn failed(what: &'static str) -> impl Fn(rtnetlink::Error) -> KernelError {
    move |source| KernelError::Request { what: what.into(), source: source.into() }
}
