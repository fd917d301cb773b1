//! Traffic over a link: one TCP flow, one UDP flow, UDP to 65,536 remotes.
//!
//! One thread alternates between sending and receiving, so that one CPU does a constant amount of
//! work. TCP also runs between two CPUs, as is usual. That rate depends on the sharing of caches, which
//! may change within seconds in a virtual machine.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
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

use super::{link::Link, namespace::in_thread, rules::remote};

const PORT: u16 = 5201;

/// Bytes per TCP system call: two GSO packets.
const CHUNK: usize = 128 << 10;

/// Payload of a UDP packet.
const PAYLOAD: usize = 18;

/// Packets per UDP system call.
const BATCH: usize = 64;

/// The remote of single flows: the second to last that 1,000 rules cover, which linear searches find
/// late.
const REMOTE: u32 = 63_998;

/// The step between remotes of [`Kind::Many`]: odd, to visit all of them in non-sequential order.
const STRIDE: u32 = 40_503;

/// The timeout of socket calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// TCP settings of the sender's namespace: a window that stays open between slices, and a congestion
/// control that is always available and does not pace, unlike BBR.
const TCP: [(&str, &str); 2] =
    [("tcp_slow_start_after_idle", "0"), ("tcp_congestion_control", "reno")];

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One TCP flow with segmentation offload, from one CPU to another.
    Tcp,
    /// One TCP flow with segmentation offload, on one CPU.
    TcpAlone,
    /// One UDP flow of small packets.
    Udp,
    /// Small UDP packets to 65,536 remotes in turn.
    Many,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::TcpAlone, Self::Udp, Self::Many];
}

/// Rates in bits (TCP) or packets (UDP) a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// By the CPU time of sending: the system call, the egress hook, and the veth pair up to the
    /// receiver's queue.
    pub sending: f64,
    /// By wall-clock time until everything is received.
    pub whole: f64,
}

/// Counts and times sending.
struct Stopwatch {
    start: Instant,
    sending: Duration,
    count: u64,
}

impl Stopwatch {
    fn start() -> Self {
        Self { start: Instant::now(), sending: Duration::ZERO, count: 0 }
    }

    /// Runs a system call that sends. Returns the number of bytes or packets.
    fn send(&mut self, call: impl FnOnce() -> io::Result<u64>) -> io::Result<u64> {
        let before = Instant::now();
        let count = call()?;
        self.sending += before.elapsed();
        self.count += count;
        Ok(count)
    }

    fn rate(&self, scale: f64) -> Rate {
        let count = self.count as f64 * scale;
        Rate {
            sending: count / self.sending.as_secs_f64(),
            whole: count / self.start.elapsed().as_secs_f64(),
        }
    }
}

/// The sockets of a link.
#[derive(Debug)]
pub struct Traffic {
    tcp: [TcpStream; 2],
    tcp_alone: [TcpStream; 2],
    udp: [UdpSocket; 2],
    /// The next remote of [`Kind::Many`].
    next: AtomicU32,
}

impl Traffic {
    /// Connects both ends.
    pub fn new(link: &Link) -> Result<Self> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let peer = SocketAddrV4::new(remote(REMOTE), PORT);
        let (listener, udp_far) = link.far.run(|| {
            let udp = UdpSocket::bind(any)?;
            setsockopt(&udp.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
            udp.set_read_timeout(Some(CALL_TIMEOUT))?;
            Ok((TcpListener::bind(any)?, udp))
        })?;
        let (tcp_near, udp_near) = link.near.run(|| {
            let udp = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            for (name, value) in TCP {
                // Write to the namespace of the thread.
                fs::write(format!("/proc/sys/net/ipv4/{name}"), value).context(name)?;
            }
            let connect = || TcpStream::connect_timeout(&peer.into(), CALL_TIMEOUT);
            Ok(([connect()?, connect()?], udp))
        })?;
        let [tcp, tcp_alone] = tcp_near;
        let (tcp, tcp_alone) = ([tcp, listener.accept()?.0], [tcp_alone, listener.accept()?.0]);
        tcp[0].set_write_timeout(Some(CALL_TIMEOUT))?;
        tcp_alone[0].set_nonblocking(true)?;
        for far in [&tcp[1], &tcp_alone[1]] {
            far.set_read_timeout(Some(CALL_TIMEOUT))?;
        }
        Ok(Self { tcp, tcp_alone, udp: [udp_near, udp_far], next: AtomicU32::new(0) })
    }

    /// Sends and receives for `time`.
    pub fn measure(&self, kind: Kind, time: Duration) -> Result<Rate> {
        match kind {
            Kind::Tcp => self.tcp(time).context("TCP"),
            Kind::TcpAlone => self.tcp_alone(time).context("TCP on one processor"),
            Kind::Udp => self.udp(time, || REMOTE).context("UDP"),
            Kind::Many => {
                let next = || self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(STRIDE);
                self.udp(time, next).context("UDP to many remotes")
            }
        }
    }

    fn tcp(&self, time: Duration) -> Result<Rate> {
        let [near, far] = &self.tcp;
        let all = &AtomicU64::new(u64::MAX);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                on_processor(1)?;
                receive(far, all)
            });
            let start = Instant::now();
            let sent = send(near, time, all);
            let end = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
            let cpu = sent.context("cannot send")?;
            let whole = end.context("cannot receive")? - start;
            let rate =
                |time: Duration| all.load(Ordering::Acquire) as f64 * 8.0 / time.as_secs_f64();
            Ok(Rate { sending: rate(cpu), whole: rate(whole) })
        })
    }

    fn tcp_alone(&self, time: Duration) -> Result<Rate> {
        let [mut near, mut far] = self.tcp_alone.each_ref();
        // Nonzero, since zeroed pages would not be allocated yet.
        let mut chunk = vec![1; CHUNK];
        let mut stopwatch = Stopwatch::start();
        while stopwatch.start.elapsed() < time {
            let sent = stopwatch.send(|| match near.write(&chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                sent => Ok(sent? as u64),
            })?;
            let mut received = 0;
            while received < sent {
                let count = far.read(&mut chunk)?;
                ensure!(count > 0, "the connection is closed");
                received += count as u64;
            }
        }
        Ok(stopwatch.rate(8.0))
    }

    fn udp(&self, time: Duration, mut to: impl FnMut() -> u32) -> Result<Rate> {
        let [near, far] = &self.udp;
        let (mut outgoing, mut incoming) = (Batch::new(true), Batch::new(false));
        let mut stopwatch = Stopwatch::start();
        while stopwatch.start.elapsed() < time {
            for address in &mut outgoing.addresses {
                address.sin_addr.s_addr = remote(to()).to_bits().to_be();
            }
            let sent = stopwatch.send(|| outgoing.send(near))?;
            let mut received = 0;
            while received < sent {
                received += incoming.receive(far)?;
            }
        }
        Ok(stopwatch.rate(1.0))
    }
}

/// Sends bytes and sets `all` to their number. Returns the CPU time.
fn send(mut stream: &TcpStream, time: Duration, all: &AtomicU64) -> Result<Duration> {
    let chunk = vec![1; CHUNK];
    let (start, before, mut sent) = (Instant::now(), thread_cpu()?, 0);
    while start.elapsed() < time {
        sent += stream.write(&chunk)? as u64;
    }
    // Before the last write, which wakes the receiver once more.
    all.store(sent + CHUNK as u64, Ordering::Release);
    stream.write_all(&chunk)?;
    Ok(thread_cpu()?.saturating_sub(before))
}

/// Receives `all` bytes. Returns the time of the last one.
fn receive(mut stream: &TcpStream, all: &AtomicU64) -> Result<Instant> {
    let mut chunk = vec![1; 2 * CHUNK];
    let mut received = 0;
    while received < all.load(Ordering::Acquire) {
        let count = stream.read(&mut chunk)?;
        ensure!(count > 0, "the connection is closed");
        received += count as u64;
    }
    Ok(Instant::now())
}

/// CPU time of the calling thread.
fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Runs `work` in a thread pinned to the first CPU with real-time priority, which child threads
/// inherit.
pub fn alone<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(|| {
        on_processor(0)?;
        // A nice value would only count within a session or cgroup.
        let least = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameter outlives the call; 0 is the calling thread.
        let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const least) };
        ensure!(result == 0, "cannot have real-time priority: {}", io::Error::last_os_error());
        work()
    })
}

/// Pins the calling thread to one CPU.
fn on_processor(number: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(number)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("two processors are needed")
}

/// A batch of packets for sendmmsg and recvmmsg.
struct Batch {
    messages: Vec<libc::mmsghdr>,
    addresses: Vec<libc::sockaddr_in>,
    // The messages point to these.
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

    fn send(&mut self, socket: &UdpSocket) -> io::Result<u64> {
        // SAFETY: the messages point to memory that the batch holds.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.messages.as_mut_ptr(), BATCH as u32, 0)
        };
        u64::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for a packet and receives all that are queued.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<u64> {
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
        u64::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}
