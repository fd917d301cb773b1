//! Senders and receivers: one TCP flow, one UDP flow, UDP to 65,536 remotes.
//!
//! The sockets outlive the rounds, so that all variants are measured on the very same flows. Senders
//! run on the first processor and receivers on the second, ahead of other programs.

use std::{
    io::{Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use super::{link::Link, rules::remote};

const PORT: u16 = 5201;

/// Payload of a UDP packet.
const PAYLOAD: usize = 18;

/// Packets a system call.
const BATCH: usize = 64;

/// The remote of the flows that have one: the last but one of those that 1,000 rules reach, so that
/// linear searches meet it late.
const REMOTE: u32 = 63_998;

/// From one remote of [`Kind::Many`] to the next; odd.
const STRIDE: u32 = 40_503;

/// How long a stuck call may take before the benchmark fails.
const STUCK: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One TCP flow with segmentation offload.
    Tcp,
    /// One UDP flow of small packets.
    Udp,
    /// Small UDP packets to 65,536 remotes in turn.
    Many,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Many];
}

/// How fast it went.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bits (TCP) or packets (UDP) received in a second.
    pub a_second: f64,
    /// The same sent in a second of the sending thread's processor time, in which are the system call, the
    /// egress hook and the veth pair, but not what other programs take.
    pub a_cpu_second: f64,
}

/// What a sender says.
struct Sent {
    /// Bytes or packets.
    count: u64,
    took: Duration,
    cpu: Duration,
}

/// The clocks of a sender.
struct Stopwatch {
    start: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Result<Self> {
        Ok(Self { start: Instant::now(), cpu: thread_cpu()? })
    }

    fn stop(&self, count: u64) -> Result<Sent> {
        Ok(Sent { count, took: self.start.elapsed(), cpu: thread_cpu()?.saturating_sub(self.cpu) })
    }
}

/// Processor time of the calling thread.
fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// The sockets of a link.
#[derive(Debug)]
pub struct Traffic {
    tcp: [TcpStream; 2],
    udp: [UdpSocket; 2],
    /// The next remote of [`Kind::Many`].
    next: AtomicU64,
}

impl Traffic {
    /// Connects both ends.
    pub fn new(link: &Link) -> Result<Self> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let peer = SocketAddrV4::new(remote(REMOTE), PORT);
        let (listener, udp_far) = link.far.run(|| {
            let udp = UdpSocket::bind(any)?;
            setsockopt(&udp.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
            udp.set_read_timeout(Some(Duration::from_millis(5)))?;
            Ok((TcpListener::bind(any)?, udp))
        })?;
        let (tcp_near, udp_near) = link.near.run(|| {
            let udp = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            Ok((TcpStream::connect_timeout(&peer.into(), STUCK)?, udp))
        })?;
        let (tcp_far, _) = listener.accept()?;
        tcp_near.set_write_timeout(Some(STUCK))?;
        tcp_far.set_read_timeout(Some(STUCK))?;
        Ok(Self { tcp: [tcp_near, tcp_far], udp: [udp_near, udp_far], next: AtomicU64::new(0) })
    }

    /// Sends for `time`.
    pub fn measure(&self, kind: Kind, time: Duration) -> Result<Rate> {
        let sending = AtomicBool::new(true);
        let sent = AtomicU64::new(u64::MAX);
        let (sending, sent) = (&sending, &sent);
        let [tcp_near, tcp_far] = &self.tcp;
        let [udp_near, udp_far] = &self.udp;
        thread::scope(|scope| {
            let far = scope.spawn(move || {
                ahead_on(1)?;
                match kind {
                    Kind::Tcp => receive_tcp(tcp_far, sending, sent),
                    Kind::Udp | Kind::Many => receive_udp(udp_far, sending),
                }
            });
            let near = scope.spawn(move || {
                let result = ahead_on(0).and_then(|()| match kind {
                    Kind::Tcp => send_tcp(tcp_near, time),
                    Kind::Udp => send_udp(udp_near, time, || REMOTE),
                    // An odd stride visits all remotes, but not in the order of memory.
                    Kind::Many => send_udp(udp_near, time, || {
                        (self.next.fetch_add(1, Ordering::Relaxed) as u32).wrapping_mul(STRIDE)
                    }),
                });
                if let Ok(Sent { count, .. }) = &result {
                    sent.store(*count, Ordering::Release);
                }
                sending.store(false, Ordering::Release);
                result
            });
            let near = near.join().map_err(|_| anyhow!("the sender panicked"))?;
            let far = far.join().map_err(|_| anyhow!("the receiver panicked"))?;
            let Sent { count, took, cpu } = near.context("the sender failed")?;
            let received = far.context("the receiver failed")?;
            ensure!(received <= count, "more was received than sent: {received} of {count}");
            let scale = if kind == Kind::Tcp { 8.0 } else { 1.0 };
            Ok(Rate {
                a_second: received as f64 * scale / took.as_secs_f64(),
                a_cpu_second: count as f64 * scale / cpu.as_secs_f64(),
            })
        })
    }
}

/// Keeps the calling thread on one processor, ahead of other programs.
fn ahead_on(cpu: usize) -> Result<()> {
    let count = thread::available_parallelism()?.get();
    let mut cpus = CpuSet::new();
    cpus.set(cpu % count)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    // SAFETY: takes no pointers; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    ensure!(result == 0, "cannot raise the priority");
    Ok(())
}

/// Sends bytes.
fn send_tcp(mut stream: &TcpStream, time: Duration) -> Result<Sent> {
    let chunk = vec![0u8; 128 << 10];
    let (watch, mut sent) = (Stopwatch::start()?, 0);
    while watch.start.elapsed() < time {
        sent += stream.write(&chunk)? as u64;
    }
    watch.stop(sent)
}

/// Receives until all that was sent has come.
fn receive_tcp(mut stream: &TcpStream, sending: &AtomicBool, sent: &AtomicU64) -> Result<u64> {
    let mut chunk = vec![0u8; 256 << 10];
    let mut received = 0;
    while sending.load(Ordering::Acquire) || received < sent.load(Ordering::Acquire) {
        received += match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(received)
}

/// One batch of packets, as sendmmsg and recvmmsg want it.
struct Batch {
    messages: Vec<libc::mmsghdr>,
    addresses: Vec<libc::sockaddr_in>,
    // Pointed to by the messages.
    _vectors: Vec<libc::iovec>,
    _payload: Vec<u8>,
}

impl Batch {
    fn new(has_addresses: bool) -> Self {
        let mut payload = vec![0u8; PAYLOAD];
        let mut vectors =
            vec![libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: PAYLOAD }; BATCH];
        // SAFETY: plain data, for which zeroes are valid.
        let empty: libc::sockaddr_in = unsafe { mem::zeroed() };
        let mut addresses = vec![
            libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: PORT.to_be(),
                ..empty
            };
            BATCH
        ];
        let messages = vectors
            .iter_mut()
            .zip(&mut addresses)
            .map(|(vector, address)| {
                // SAFETY: plain data, for which zeroes are valid.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                if has_addresses {
                    message.msg_hdr.msg_name = ptr::from_mut(address).cast();
                    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                }
                message
            })
            .collect();
        Self { messages, addresses, _vectors: vectors, _payload: payload }
    }

    fn send(&mut self, socket: &UdpSocket) -> std::io::Result<u64> {
        // SAFETY: the messages point to memory that the batch holds.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.messages.as_mut_ptr(), BATCH as u32, 0)
        };
        u64::try_from(sent).map_err(|_| std::io::Error::last_os_error())
    }

    /// Waits for a first packet and takes what else there is.
    fn receive(&mut self, socket: &UdpSocket) -> std::io::Result<u64> {
        // SAFETY: the messages point to memory that the batch holds; packets write the same zeroes to
        // the one payload buffer.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        u64::try_from(received).map_err(|_| std::io::Error::last_os_error())
    }
}

/// Sends packets.
fn send_udp(socket: &UdpSocket, time: Duration, mut to: impl FnMut() -> u32) -> Result<Sent> {
    let mut batch = Batch::new(true);
    let (watch, mut sent) = (Stopwatch::start()?, 0);
    while watch.start.elapsed() < time {
        for address in &mut batch.addresses {
            address.sin_addr.s_addr = remote(to()).to_bits().to_be();
        }
        sent += batch.send(socket)?;
    }
    watch.stop(sent)
}

/// Receives until nothing more comes.
fn receive_udp(socket: &UdpSocket, sending: &AtomicBool) -> Result<u64> {
    let mut batch = Batch::new(false);
    let mut received = 0;
    loop {
        let was_sending = sending.load(Ordering::Acquire);
        match batch.receive(socket) {
            Ok(count) => received += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if !was_sending {
                    return Ok(received);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
