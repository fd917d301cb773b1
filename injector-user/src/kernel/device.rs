//! Network devices of our own, on which packets are held: a veth pair, or a TAP.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
};

use super::{
    KernelError,
    interface::{block_on, failed},
    netns::Netns,
};

/// What the names of hold devices begin with, where packets go in.
pub const NEAR: &str = "injhold";

/// What they begin with where packets come back.
pub const FAR: &str = "injback";

/// A name and an index that a device is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name, at most 15 bytes.
    pub name: String,
    /// The index in its namespace.
    pub index: u32,
    /// Its link-layer address, which tells it from one of others by that name and index; the kernel's choice if `None`.
    pub address: Option<[u8; 6]>,
}

/// A link-layer address that no other device has, by chance: locally administered, of one device.
#[must_use]
pub fn random_address() -> [u8; 6] {
    let mut address: [u8; 6] = rand::random();
    address[0] = address[0] & !1 | 2;
    address
}

/// Any packet fits into a veth pair of this MTU, which both ends check (GSO packets excepted).
const VETH_MTU: u32 = 65_535;

/// The most that a TAP may have; packets that are redirected to it may be longer.
const TAP_MTU: u32 = 65_521;

/// What precedes each packet read from and written to a TAP: `struct virtio_net_hdr`.
pub const VNET_HEADER: usize = 10;

/// How many packets a TAP keeps for us until we read them; Linux 7.3 refuses 32,768.
const TAP_QUEUE: u32 = 16_384;

/// Makes a veth pair, without IPv6 addresses of its own, and has it up.
pub fn add_veth(netns: &Netns, near: &Identity, far: &Identity) -> Result<(), KernelError> {
    netns.run(|| {
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
    })?
}

/// Has both ends of a veth pair of ours up again.
pub fn start_veth(netns: &Netns, near: &Identity, far: &Identity) -> Result<(), KernelError> {
    netns.run(|| {
        start(near, VETH_MTU, None)?;
        start(far, VETH_MTU, None)
    })?
}

/// Has a TAP of ours up again.
pub fn start_tap(netns: &Netns, identity: &Identity) -> Result<(), KernelError> {
    netns.run(|| start(identity, TAP_MTU, Some(TAP_QUEUE)))?
}

/// Makes a TAP that goes with its file, and has it up.
pub fn add_tap(netns: &Netns, identity: &Identity) -> Result<File, KernelError> {
    netns.run(|| {
        let tap = open_tap(identity).map_err(KernelError::Tap)?;
        start(identity, TAP_MTU, Some(TAP_QUEUE))?;
        Ok(tap)
    })?
}

/// Removes a device, if it and its namespace are there.
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

/// Has a device of ours up, ready for all packets.
fn start(identity: &Identity, mtu: u32, queue: Option<u32>) -> Result<(), KernelError> {
    // Else it would talk of itself. Where there is no IPv6, there is nothing to say.
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
        *to = from.cast_signed();
    }
    // With the header of virtio, large packets and unfinished checksums pass through as they are.
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

/// The requests of tun(4), as `linux/if_tun.h` has them.
mod ioctl {
    use nix::{ioctl_write_int, ioctl_write_ptr};

    ioctl_write_ptr!(set, b'T', 202, libc::c_int);
    ioctl_write_int!(set_offload, b'T', 208);
    ioctl_write_ptr!(set_interface, b'T', 218, libc::c_int);
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if -error.raw_code() == libc::ENODEV)
}
