//! A sender and a receiver with a host between them that routes or bridges, and traffic of a fixed rate.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Host, INTERFACE, TIMEOUT, TestCgroup, ip, unique};

/// The offered rate of each flow, in bits per second: low enough for an emulated machine, but several
/// times the rate of a socket that is charged for delayed packets.
pub const OFFERED: f64 = 8e6;

/// The send buffer of the UDP socket, for some datagrams in flight on the sender's host.
const SEND_BUFFER: usize = 32 << 10;

/// The interval of writes.
const TICK: Duration = Duration::from_millis(2);

/// Payload bytes of a datagram.
const DATAGRAM: usize = 1400;

/// The middle host's interface towards the sender.
pub const TO_SENDER: &str = "in0";

/// The middle host's interface towards the receiver.
pub const TO_RECEIVER: &str = "out0";

/// How the middle host forwards packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// By routing.
    Routes,
    /// By a bridge, as for containers.
    Bridges,
}

/// Three namespaces in a row, connected by veth pairs.
#[derive(Debug)]
pub struct Row {
    /// The sender.
    pub sender: Host,
    /// The middle host.
    pub middle: Host,
    /// The receiver.
    pub receiver: Host,
}

/// Received bits per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of one TCP connection.
    pub tcp: f64,
    /// Of one concurrent UDP flow.
    pub udp: f64,
}

impl Row {
    /// Creates the namespaces and the links.
    #[must_use]
    pub fn new(kind: Middle) -> Self {
        let name = unique();
        let host = |side: &str, v4: [u8; 4], number: u8| Host {
            netns: format!("{name}{side}"),
            v4: Ipv4Addr::from(v4),
            v6: Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)),
            mac: [2, 0, 0, 0, 8, number],
        };
        let routes = kind == Middle::Routes;
        let far = [10, 8, if routes { 2 } else { 1 }, 3];
        let row = Self {
            sender: host("s", [10, 8, 1, 1], 1),
            middle: host("m", [10, 8, 1, 2], 2),
            receiver: host("r", far, 3),
        };
        let (s, m, r) = (&row.sender.netns, &row.middle.netns, &row.receiver.netns);
        ip(
            &[],
            &format!(
                "netns add {s}\nnetns add {m}\nnetns add {r}\n\
                 link add {INTERFACE} netns {s} type veth peer name {TO_SENDER} netns {m}\n\
                 link add {INTERFACE} netns {r} type veth peer name {TO_RECEIVER} netns {m}\n"
            ),
        );
        let end = |host: &Host| {
            format!(
                "link set lo up\nlink set {INTERFACE} up\naddr add {}/24 dev {INTERFACE}\n",
                host.v4
            )
        };
        let middle = format!("link set {TO_SENDER} up\nlink set {TO_RECEIVER} up\n");
        let (mut sender, mut receiver) = (end(&row.sender), end(&row.receiver));
        if routes {
            sender += "route add default via 10.8.1.2\n";
            receiver += "route add default via 10.8.2.2\n";
            ip(
                &["-n", m],
                &format!(
                    "{middle}addr add 10.8.1.2/24 dev {TO_SENDER}\naddr add 10.8.2.2/24 dev {TO_RECEIVER}\n"
                ),
            );
            row.middle.run("sysctl -q -w net.ipv4.ip_forward=1");
        } else {
            ip(
                &["-n", m],
                &format!(
                    "link add br0 type bridge\nlink set br0 up\n{middle}\
                     link set {TO_SENDER} master br0\nlink set {TO_RECEIVER} master br0\n"
                ),
            );
        }
        ip(&["-n", s], &sender);
        ip(&["-n", r], &receiver);
        let end = Instant::now() + TIMEOUT;
        while row.sender.ping(None, row.receiver.v4.into(), 1) == 0 {
            assert!(Instant::now() < end, "the path does not come up");
        }
        row
    }

    /// Connects one TCP and one UDP flow from the sender to the receiver. All sockets belong to `cgroup`, if
    /// given.
    #[must_use]
    pub fn connect(&self, cgroup: Option<&TestCgroup>) -> Flows {
        let address = SocketAddr::new(IpAddr::V4(self.receiver.v4), 9000);
        let (listener, udp_in, tcp_out, udp_out) = owned_by(cgroup, || {
            let (listener, udp_in) = self.receiver.inside(|| {
                (TcpListener::bind(address).expect("free"), UdpSocket::bind(address).expect("free"))
            });
            let (tcp_out, udp_out) = self.sender.inside(|| {
                let tcp = TcpStream::connect_timeout(&address, TIMEOUT);
                (tcp.expect("it listens"), UdpSocket::bind("0.0.0.0:0").expect("free"))
            });
            (listener, udp_in, tcp_out, udp_out)
        });
        udp_out.connect(address).expect("there is a route");
        let (tcp_in, _) = listener.accept().expect("it has connected");
        for result in [
            tcp_in.set_read_timeout(Some(TICK)),
            udp_in.set_read_timeout(Some(TICK)),
            tcp_out.set_write_timeout(Some(TICK)),
            tcp_out.set_nodelay(true),
            setsockopt(&udp_in, sockopt::RcvBufForce, &(16 << 20)).map_err(io::Error::from),
            setsockopt(&udp_out, sockopt::SndBuf, &SEND_BUFFER).map_err(io::Error::from),
        ] {
            result.expect("sockets have these options");
        }
        Flows { tcp_in, tcp_out, udp_in, udp_out }
    }

    /// The rates of [`Flows::rates`] of new flows.
    #[must_use]
    pub fn rates(&self, cgroup: Option<&TestCgroup>, delay: Duration, time: Duration) -> Rates {
        self.connect(cgroup).rates(delay, time)
    }
}

/// The sockets of one TCP and one UDP flow.
#[derive(Debug)]
pub struct Flows {
    tcp_in: TcpStream,
    tcp_out: TcpStream,
    udp_in: UdpSocket,
    udp_out: UdpSocket,
}

/// The bytes of packets on their way that are charged to a socket: `sk_wmem_alloc`.
fn charged(socket: &impl AsRawFd) -> u32 {
    // Its index in what `sk_get_meminfo` of net/core/sock.c fills.
    const WMEM_ALLOC: usize = 2;
    let mut values = [0_u32; 9];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: `values` is writable for `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "SO_MEMINFO: {}", io::Error::last_os_error());
    values[WMEM_ALLOC]
}

impl Flows {
    /// Sends a segment of the TCP connection and a datagram.
    pub fn send(&self) {
        let data = [1; DATAGRAM];
        (&self.tcp_out).write_all(&data).expect("the buffer has room");
        self.udp_out.send(&data).expect("the buffer has room");
    }

    /// The bytes of packets on their way that are charged to the sockets of TCP and of UDP.
    #[must_use]
    pub fn charged(&self) -> [u32; 2] {
        [charged(&self.tcp_out), charged(&self.udp_out)]
    }

    /// Whether anything has arrived that was not read.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        let mut byte = [0];
        self.tcp_in.peek(&mut byte).is_ok() || self.udp_in.peek(&mut byte).is_ok()
    }

    /// Sends [`OFFERED`] over each flow, for `time` after the path has filled.
    #[must_use]
    pub fn rates(&self, delay: Duration, time: Duration) -> Rates {
        let Self { tcp_in, tcp_out, udp_in, udp_out } = self;
        let (ended, tcp, udp) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| count(&ended, &tcp, |buffer| (&*tcp_in).read(buffer)));
            scope.spawn(|| count(&ended, &udp, |buffer| udp_in.recv(buffer)));
            scope.spawn(|| offer(&ended, |data| (&*tcp_out).write(data)));
            scope.spawn(|| {
                offer(&ended, |data| {
                    data.chunks_exact(DATAGRAM).map(|datagram| udp_out.send(datagram)).sum()
                });
            });
            thread::sleep(Duration::from_millis(500) + 4 * delay);
            let load = || [&tcp, &udp].map(|count| count.load(Ordering::Relaxed));
            let (start, before) = (Instant::now(), load());
            thread::sleep(time);
            let (after, took) = (load(), start.elapsed().as_secs_f64());
            ended.store(true, Ordering::Relaxed);
            let rate = |number: usize| (after[number] - before[number]) as f64 * 8.0 / took;
            Rates { tcp: rate(0), udp: rate(1) }
        })
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for host in [&self.sender, &self.middle, &self.receiver] {
            // A failure cannot be handled while panicking.
            let _ = Command::new("ip").args(["netns", "del", &host.netns]).status();
        }
    }
}

/// Creates sockets by `make` that belong to `cgroup`, by moving the process there meanwhile.
fn owned_by<T>(cgroup: Option<&TestCgroup>, make: impl FnOnce() -> T) -> T {
    let Some(cgroup) = cgroup else { return make() };
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").expect("proc is mounted");
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup v2");
    let own = super::hierarchy().join(own.trim_start_matches('/'));
    let enter = |path: &std::path::Path| {
        std::fs::write(path.join("cgroup.procs"), "0").expect("root may move this process");
    };
    enter(&cgroup.path);
    let value = make();
    enter(&own);
    value
}

/// Counts received bytes until `ended`.
fn count(
    ended: &AtomicBool,
    count: &AtomicU64,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) {
    let mut buffer = vec![0; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        if let Ok(length) = read(&mut buffer) {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// Writes at the rate [`OFFERED`] until `ended`. Does not catch up after long stalls.
fn offer(ended: &AtomicBool, mut write: impl FnMut(&[u8]) -> io::Result<usize>) {
    const MOST: usize = 1 << 20;
    let data = vec![1; MOST];
    let start = Instant::now();
    let mut done = 0;
    while !ended.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * OFFERED / 8.0) as usize;
        done = done.max(due.saturating_sub(MOST));
        // Fails if the buffer has no room for a tick.
        done += write(&data[..due.saturating_sub(done)]).unwrap_or(0);
        thread::sleep(TICK);
    }
}
