//! Injector's own devices: the veth pair or TAP that holds packets, and the macvlan that segments GSO
//! packets.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, MacVlanMode},
};

use super::{
    KernelError,
    interface::{block_on, failed},
    netns::Netns,
};

/// The name prefix of hold devices, for the end at which packets enter.
pub const NEAR: &str = "injhold";

/// The name prefix for the end at which packets come back.
pub const FAR: &str = "injback";

/// The name prefix of the devices that segment GSO packets.
pub const WIRE: &str = "injwire";

/// The name prefix of the devices below those, where rules act.
pub const CUT: &str = "injcut";

/// The name prefix of the other ends of these veth pairs.
pub const CUT_PEER: &str = "injcutp";

/// The name prefixes of all of injector's devices.
pub const PREFIXES: [&str; 4] = [NEAR, FAR, WIRE, CUT];

/// The identity of a device of injector's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name, at most 15 bytes.
    pub name: String,
    /// The index in its namespace.
    pub index: u32,
    /// The link-layer address, which tells it from a foreign device of the same name and index. If
    /// `None`, the kernel chooses one.
    pub address: Option<[u8; 6]>,
}

/// A random link-layer address: unicast, locally administered.
#[must_use]
pub fn random_address() -> [u8; 6] {
    let mut address: [u8; 6] = rand::random();
    address[0] = address[0] & !1 | 2;
    address
}

/// The MTU of the veth pair, checked on both ends: any packet fits (GSO packets are exempt).
const VETH_MTU: u32 = 65_535;

/// The maximum MTU of a TAP. Redirected packets may be longer.
const TAP_MTU: u32 = 65_521;

/// The size of the header before each packet of the TAP, `struct virtio_net_hdr`.
pub const VNET_HEADER: usize = 10;

/// The queue length of the TAP in packets. Linux 7.3 refuses 32,768.
const TAP_QUEUE: u32 = 16_384;

/// Creates a veth pair without IPv6 addresses and sets it up.
pub fn add_veth(netns: &Netns, near: &Identity, far: &Identity) -> Result<(), KernelError> {
    netns.run(|| add_veth_here(near, far))?
}

fn add_veth_here(near: &Identity, far: &Identity) -> Result<(), KernelError> {
    block_on(async |handle| {
        let peer = LinkUnspec::new_with_index(far.index).name(far.name.clone()).build();
        let mut pair = LinkMessageBuilder::<LinkVeth>::new(&near.name, &far.name)
            .index(near.index)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        if let Some(address) = near.address {
            pair = pair.address(address.to_vec());
        }
        handle.link().add(pair.build()).execute().await.map_err(failed("making a veth pair"))
    })?;
    start(near, VETH_MTU, None)?;
    start(far, VETH_MTU, None)
}

/// The devices that segment GSO packets: a macvlan, and the veth pair below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireDevices {
    /// The macvlan.
    pub upper: Identity,
    /// The end of the veth pair below it. The macvlan is removed with it.
    pub lower: Identity,
    /// The other end, which receives nothing.
    pub peer: Identity,
}

impl WireDevices {
    /// All of them, in the order in which they must be set up.
    #[must_use]
    pub const fn all(&self) -> [&Identity; 3] {
        [&self.peer, &self.lower, &self.upper]
    }
}

/// Creates the devices that segment GSO packets and sets them up.
pub fn add_wire(netns: &Netns, devices: &WireDevices) -> Result<(), KernelError> {
    netns.run(|| {
        let WireDevices { upper, lower, peer } = devices;
        add_veth_here(lower, peer)?;
        // A private macvlan sends everything to the device below, within the sender's call. It adopts
        // the carrier of that device, which must therefore be up.
        block_on(async |handle| {
            let macvlan = LinkMacVlan::new(&upper.name, lower.index, MacVlanMode::Private);
            let macvlan = macvlan.index(upper.index).build();
            handle.link().add(macvlan).execute().await.map_err(failed("making a macvlan"))
        })?;
        start_upper(upper)
    })?
}

/// Sets the devices that segment GSO packets up again.
pub fn start_wire(netns: &Netns, devices: &WireDevices) -> Result<(), KernelError> {
    netns.run(|| {
        start(&devices.peer, VETH_MTU, None)?;
        start(&devices.lower, VETH_MTU, None)?;
        start_upper(&devices.upper)
    })?
}

/// Configures a macvlan to segment all GSO packets and sets it up.
fn start_upper(upper: &Identity) -> Result<(), KernelError> {
    /// GSO packets from another machine may not tell their number of segments. The size limit makes
    /// the kernel segment those too. Newer kernels refuse a smaller one.
    const MAX_SIZE: u32 = 1024;

    block_on(async |handle| {
        let limits = LinkUnspec::new_with_index(upper.index)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(1))
            .append_extra_attribute(LinkAttribute::GsoMaxSize(MAX_SIZE));
        let set = handle.link().set(limits.build()).execute().await;
        set.map_err(failed("limiting the segments of a macvlan"))
    })?;
    start(upper, VETH_MTU, None)
}

/// Whether an error means that the kernel lacks a kind of device.
#[must_use]
pub fn is_unsupported(error: &KernelError) -> bool {
    let KernelError::Request { source, .. } = error else { return false };
    matches!(&**source, rtnetlink::Error::NetlinkError(error)
        if -error.raw_code() == libc::EOPNOTSUPP)
}

/// Sets one end of a veth pair up again.
pub fn start_veth(netns: &Netns, end: &Identity) -> Result<(), KernelError> {
    netns.run(|| start(end, VETH_MTU, None))?
}

/// Sets a TAP up again.
pub fn start_tap(netns: &Netns, identity: &Identity) -> Result<(), KernelError> {
    netns.run(|| start(identity, TAP_MTU, Some(TAP_QUEUE)))?
}

/// Creates a TAP that is removed when its file is closed, and sets it up.
pub fn add_tap(netns: &Netns, identity: &Identity) -> Result<File, KernelError> {
    netns.run(|| {
        let tap = open_tap(identity).map_err(KernelError::Tap)?;
        start(identity, TAP_MTU, Some(TAP_QUEUE))?;
        Ok(tap)
    })?
}

/// Removes a device if it still exists.
pub fn remove(netns: u64, identity: &Identity) -> Result<(), KernelError> {
    let Some(netns) = Netns::find_by_inode(netns) else { return Ok(()) };
    netns.run(|| {
        block_on(async |handle| {
            let found = handle.link().get().match_index(identity.index).execute().try_next().await;
            let is_ours = match found {
                Ok(Some(LinkMessage { attributes, .. })) => {
                    let address =
                        identity.address.map(|address| LinkAttribute::Address(address.to_vec()));
                    attributes.contains(&LinkAttribute::IfName(identity.name.clone()))
                        && address.is_none_or(|address| attributes.contains(&address))
                }
                Ok(None) => false,
                Err(error) if is_gone(&error) => false,
                Err(error) => return Err(failed("looking for a device")(error)),
            };
            if !is_ours {
                return Ok(());
            }
            match handle.link().del(identity.index).execute().await {
                Err(error) if !is_gone(&error) => Err(failed("removing a device")(error)),
                _ => Ok(()),
            }
        })
    })?
}

/// Configures a device for all packets and sets it up.
fn start(identity: &Identity, mtu: u32, queue: Option<u32>) -> Result<(), KernelError> {
    // Without this, the device would send IPv6 autoconfiguration packets. Fails where IPv6 is disabled.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", identity.name), "1");
    block_on(async |handle| {
        let change = LinkUnspec::new_with_index(identity.index).mtu(mtu).up();
        let change = match queue {
            Some(length) => change.txqueuelen(length),
            None => change,
        };
        handle.link().set(change.build()).execute().await.map_err(failed("starting a device"))
    })
}

fn open_tap(identity: &Identity) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let fd = file.as_raw_fd();
    let index = identity.index.cast_signed();
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    for (to, from) in
        request.ifr_name.iter_mut().zip(identity.name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The virtio header keeps GSO packets and partial checksums as they are.
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: each request takes what it is given here (linux/if_tun.h).
    unsafe {
        ioctl::set_interface(fd, &raw const index)?;
        ioctl::set(fd, (&raw const request).cast())?;
        if ioctl::set_offload(fd, OFFLOADS_6_2.into()).is_err() {
            ioctl::set_offload(fd, OFFLOADS.into())?;
        }
    }
    Ok(file)
}

/// Checksums, TCP segmentation over IPv4 and IPv6, with ECN.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// The same, and UDP segmentation over both (Linux 6.2).
const OFFLOADS_6_2: u32 = OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// ioctl requests of tun (`linux/if_tun.h`).
mod ioctl {
    use nix::{ioctl_write_int, ioctl_write_ptr};

    ioctl_write_ptr!(set, b'T', 202, libc::c_int);
    ioctl_write_int!(set_offload, b'T', 208);
    ioctl_write_ptr!(set_interface, b'T', 218, libc::c_int);
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if -error.raw_code() == libc::ENODEV)
}
