//! A tunnel between two hosts that marks checksums as verified, as `WireGuard` does: the kernel of the
//! second host does not verify checksums of TCP, UDP and ICMP.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Family, Host, TIMEOUT, ip, wait_until};

/// The name of its interface at both ends.
pub const TUNNEL: &str = "tun0";

/// The capacity of its queues in packets, so that none is lost while a busy machine does not run its thread.
const QUEUE: usize = 10_000;

/// The length of a `virtio_net_hdr`.
const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is partial, so that no receiver verifies it.
const NEEDS_CSUM: u8 = 1;

mod request {
    #![allow(missing_docs, reason = "the macro makes it public")]
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
}

/// The tunnel, removed when dropped.
#[derive(Debug)]
pub struct Tunnel {
    is_over: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Creates a tunnel that marks checksums for the second host. The first host is 10.8.0.1 and
    /// `fd08::1`, the second 10.8.0.2 and `fd08::2`.
    #[must_use]
    pub fn new(hosts: [&Host; 2]) -> Self {
        let ends = hosts.map(|host| host.inside(open));
        for (host, n) in hosts.iter().zip(1..) {
            let (v4, v6) = (address(Family::V4, n), address(Family::V6, n));
            ip(
                &["-n", &host.netns],
                &format!(
                    "link set {TUNNEL} addrgenmode none\nlink set {TUNNEL} txqueuelen {QUEUE} up\n\
                     addr add {v4}/24 dev {TUNNEL}\naddr add {v6}/64 dev {TUNNEL} nodad\n"
                ),
            );
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        let carrier = thread::spawn(move || carry(&ends, &flag));
        Self { is_over, carrier: Some(carrier) }
    }
}

/// The address of one of its ends.
#[must_use]
pub fn address(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 8, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// A TUN in the namespace of this thread, whose packets have a `virtio_net_hdr` before them. The one of an earlier tunnel lasts until no process that is being started
/// by another thread has a copy of its descriptor.
#[must_use]
pub fn open() -> File {
    let mut opened = None;
    wait_until(TIMEOUT, "a TUN", || match try_open() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => false,
        result => {
            opened = Some(result.expect("a TUN can be made"));
            true
        }
    });
    opened.expect("it was opened")
}

fn try_open() -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TUNNEL.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request outlives the call.
    unsafe { request::set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}

/// Where the upper-layer header of an IP packet without options starts, and where in that the checksum is.
fn checksum(packet: &[u8]) -> Option<(u16, u16)> {
    let (start, protocol) = match packet.first()? >> 4 {
        4 => (20, packet.get(9)?),
        _ => (40, packet.get(6)?),
    };
    match protocol {
        6 => Some((start, 16)),
        17 => Some((start, 6)),
        1 | 58 => Some((start, 2)),
        _ => None,
    }
}

/// Carries packets from each end to the other.
fn carry(ends: &[File; 2], is_over: &AtomicBool) {
    const MILLISECONDS: u8 = 20;
    let mut buffer = vec![0; 1 << 16];
    while !is_over.load(Ordering::Relaxed) {
        let mut both = ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        if poll(&mut both, PollTimeout::from(MILLISECONDS)).is_err() {
            return;
        }
        for (mut from, mut to, vouches) in [(&ends[0], &ends[1], true), (&ends[1], &ends[0], false)]
        {
            while let Ok(length) = from.read(&mut buffer) {
                buffer[..HEADER].fill(0);
                if vouches && let Some((start, offset)) = checksum(&buffer[HEADER..length]) {
                    buffer[0] = NEEDS_CSUM;
                    buffer[6..8].copy_from_slice(&start.to_ne_bytes());
                    buffer[8..10].copy_from_slice(&offset.to_ne_bytes());
                }
                // The kernel refuses packets other than IP, as behind any tunnel.
                let _ = to.write(&buffer[..length]);
            }
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            // A failure cannot be handled while panicking.
            let _ = carrier.join();
        }
    }
}
