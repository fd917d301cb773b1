//! Datagrams stamped with their number and the time of sending by `CLOCK_MONOTONIC`, which both ends
//! share.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};

use crate::{end_of_input, enlarge, quiet, ready, set_option};

/// The size of number and time.
const STAMP: usize = 12;

fn now_ns(clock: ClockId) -> io::Result<u64> {
    let now = Duration::from(clock_gettime(clock)?);
    u64::try_from(now.as_nanos()).map_err(io::Error::other)
}

/// Raises the priority of the calling thread, whose lateness counts as delay.
fn hurry() {
    // SAFETY: takes no pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// Sends `count` datagrams (`None`: until standard input ends) of `size` bytes, one every `every_us` microseconds; overdue ones are sent at
/// once. `flows` sockets send in turn.
pub fn send(
    to: SocketAddr,
    count: Option<u32>,
    size: usize,
    every_us: u64,
    tos: u8,
    flows: usize,
) -> io::Result<Value> {
    let any = match to.ip() {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let open = |_| {
        let socket = UdpSocket::bind(any)?;
        enlarge(&socket)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_TOS, tos.into())?;
        Ok(socket)
    };
    let sockets = (0..flows).map(open).collect::<io::Result<Vec<_>>>()?;
    hurry();
    let mut datagram = vec![0; size.max(STAMP)];
    let start = Instant::now();
    let ended = count.is_none().then(|| {
        ready();
        end_of_input()
    });
    let mut sent = 0u32;
    for (number, socket) in (0..count.unwrap_or(u32::MAX)).zip(sockets.iter().cycle()) {
        if ended.as_ref().is_some_and(|ended| ended.load(Ordering::SeqCst)) {
            break;
        }
        let due = start + Duration::from_micros(every_us * u64::from(number));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        datagram[4..STAMP].copy_from_slice(&now_ns(ClockId::CLOCK_MONOTONIC)?.to_be_bytes());
        socket.send_to(&datagram, to)?;
        sent += 1;
    }
    Ok(json!({ "sent": sent }))
}

/// Receives until standard input ends. Reports number, delay and time of arrival of each datagram, in order
/// of arrival, in nanoseconds.
pub fn receive(bind: SocketAddr) -> io::Result<Value> {
    let socket = UdpSocket::bind(bind)?;
    enlarge(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    // The kernel's timestamps of arrival are by the wall clock.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    let ahead = now_ns(ClockId::CLOCK_REALTIME)? - now_ns(ClockId::CLOCK_MONOTONIC)?;
    hurry();
    let ended = end_of_input();
    ready();
    let (mut numbers, mut delays, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let mut buffer = vec![0; 65536];
    let mut last = Instant::now();
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!(libc::timespec);
        let flags = MsgFlags::empty();
        let got =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags);
        let got = got.map(|message| {
            let times = message.cmsgs().into_iter().flatten().filter_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            });
            (message.bytes, times.last())
        });
        match got {
            Ok((length, time)) => {
                last = Instant::now();
                let time = time.ok_or_else(|| io::Error::other("no time of receipt"))?;
                let time = u64::try_from(time.as_nanos()).map_err(io::Error::other)?;
                let now = time - ahead;
                let Some((stamp, _)) = buffer[..length].split_first_chunk::<STAMP>() else {
                    continue;
                };
                let [a, b, c, d, time @ ..] = *stamp;
                numbers.push(u32::from_be_bytes([a, b, c, d]));
                delays.push(now.saturating_sub(u64::from_be_bytes(time)));
                times.push(now);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                if !ended.load(Ordering::SeqCst) {
                    last = Instant::now();
                } else if last.elapsed() > quiet() {
                    return Ok(
                        json!({ "numbers": numbers, "delays_ns": delays, "times_ns": times }),
                    );
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
