//! Traffic for the tests: each subcommand is one party of a conversation.
//!
//! A separate program, since a socket belongs to the network namespace and the cgroup of the process that
//! creates it. Servers print `{"event":"ready"}` once they are reachable and end when their standard input
//! does. Each party prints its report as one line of JSON at its end.

mod stamp;

use std::{
    collections::BTreeMap,
    ffi::CString,
    io::{self, Read as _, Write as _},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// A party ends once it has received nothing for this time after the end of its input. The thread that
/// carries the packets of a tunnel may stand still for longer than a moment on an emulated machine.
fn quiet() -> Duration {
    Duration::from_millis(if testbed::is_guest() { 1000 } else { 100 })
}

#[derive(Parser)]
enum Party {
    /// Receive numbered datagrams until standard input ends; with --echo, return each
    UdpReceive {
        #[arg(long)]
        bind: SocketAddr,
        /// Connect to this peer.
        #[arg(long)]
        connect: Option<SocketAddr>,
        #[arg(long)]
        echo: bool,
        /// Join this multicast group.
        #[arg(long)]
        group: Option<IpAddr>,
        /// Share the address with other sockets (`SO_REUSEPORT`).
        #[arg(long)]
        shared: bool,
    },
    /// Send numbered datagrams; with --replies, count the replies
    UdpSend {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bind: Option<SocketAddr>,
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// Payload bytes of a datagram.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Connect the socket and send without an address.
        #[arg(long)]
        connected: bool,
        #[arg(long)]
        replies: bool,
        /// Pause between datagrams; by default only after every 32nd, for the receiver to keep up.
        #[arg(long)]
        pause_us: Option<u64>,
        /// Send until standard input ends, whatever --count says.
        #[arg(long)]
        endless: bool,
    },
    /// Send datagrams with their number and the time
    StampSend {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// Send until standard input ends, whatever --count says.
        #[arg(long)]
        endless: bool,
        /// Payload bytes of a datagram.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Interval of datagrams.
        #[arg(long, default_value_t = 1000)]
        every_us: u64,
        /// The type-of-service byte.
        #[arg(long, default_value_t = 0)]
        tos: u8,
        /// Number of sockets, which send in turn.
        #[arg(long, default_value_t = 1)]
        flows: usize,
    },
    /// Receive stamped datagrams until standard input ends, and print their times of arrival and delays
    StampReceive {
        #[arg(long)]
        bind: SocketAddr,
    },
    /// Accept connections until standard input ends
    TcpServe {
        #[arg(long)]
        bind: SocketAddr,
        #[arg(long, value_enum, default_value_t = Mode::Sink)]
        mode: Mode,
        /// Bytes that a source sends on each connection.
        #[arg(long, default_value_t = 0)]
        bytes: usize,
        /// Bytes of one write.
        #[arg(long, default_value_t = 65536)]
        chunk: usize,
        /// Accept multipath TCP.
        #[arg(long)]
        mptcp: bool,
    },
    /// Connect, transfer bytes, and report the result
    TcpConnect {
        #[arg(long)]
        to: SocketAddr,
        /// The kind of server.
        #[arg(long, value_enum, default_value_t = Mode::Sink)]
        mode: Mode,
        #[arg(long, default_value_t = 0)]
        bytes: usize,
        #[arg(long, default_value_t = 65536)]
        chunk: usize,
        /// Timeout of connecting, reading and writing.
        #[arg(long, default_value_t = 10_000)]
        timeout_ms: u64,
        /// Print {"event":"ready"} once connected, and transfer bytes after a line on standard input.
        #[arg(long)]
        hold: bool,
        /// Number of connections, one after another.
        #[arg(long, default_value_t = 1)]
        connections: u32,
        /// Multipath TCP.
        #[arg(long)]
        mptcp: bool,
    },
    /// Write on many connections concurrently for a while
    TcpFlood {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        connections: u32,
        #[arg(long)]
        seconds: u64,
    },
    /// Send raw frames by a packet socket
    RawSend {
        #[arg(long)]
        interface: String,
        /// Frames in hexadecimal, sent in this order.
        #[arg(long = "frame", required = true)]
        frames: Vec<String>,
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// Count the frames that an interface receives until standard input ends
    Sniff {
        #[arg(long)]
        interface: String,
        /// In hexadecimal: count only frames that end with one of these.
        #[arg(long = "ending", required = true)]
        endings: Vec<String>,
    },
}

/// The behaviour of a TCP server.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Reads and checks.
    Sink,
    /// Writes.
    Source,
    /// Echoes.
    Echo,
}

fn main() -> ExitCode {
    let result = match Party::parse() {
        Party::UdpReceive { bind, connect, echo, group, shared } => {
            receiver(bind, group, shared).and_then(|socket| udp_receive(&socket, connect, echo))
        }
        Party::UdpSend { to, bind, count, size, connected, replies, pause_us, endless } => {
            let count = if endless { u32::MAX } else { count };
            let how = UdpSend { count, size, connected, replies, pause_us, endless };
            udp_send(to, bind, &how)
        }
        Party::StampSend { to, count, endless, size, every_us, tos, flows } => {
            let count = if endless { None } else { Some(count) };
            stamp::send(to, count, size, every_us, tos, flows)
        }
        Party::StampReceive { bind } => stamp::receive(bind),
        Party::TcpServe { bind, mode, bytes, chunk, mptcp } => {
            tcp_serve(bind, mode, bytes, chunk, mptcp)
        }
        Party::TcpConnect { to, mode, bytes, chunk, timeout_ms, hold, connections, mptcp } => {
            let timeout = Duration::from_millis(timeout_ms);
            let mut reports: Vec<Value> = (0..connections)
                .map(|_| tcp_connect(to, mode, bytes, chunk, timeout, hold, mptcp))
                .collect();
            Ok(if connections == 1 { reports.remove(0) } else { Value::Array(reports) })
        }
        Party::TcpFlood { to, connections, seconds } => {
            tcp_flood(to, connections, Duration::from_secs(seconds))
        }
        Party::RawSend { interface, frames, count } => raw_send(&interface, &frames, count),
        Party::Sniff { interface, endings } => sniff(&interface, &endings),
    };
    match result {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(report: &Value) {
    let mut out = io::stdout().lock();
    // Fails only if the receiver has gone.
    let _ = writeln!(out, "{report}").and_then(|()| out.flush());
}

fn ready() {
    say(&json!({"event": "ready"}));
}

/// Becomes true when standard input ends.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::SeqCst);
    });
    ended
}

/// Fills a datagram: its number, its length, and bytes that follow from the number.
fn fill(number: u32, datagram: &mut [u8]) {
    let length = datagram.len() as u32;
    // All bits of the number affect the bytes.
    let mixed =
        (u64::from(number) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    for (at, byte) in datagram.iter_mut().enumerate() {
        *byte = match at {
            0..4 => number.to_be_bytes()[at],
            4..8 => length.to_be_bytes()[at - 4],
            _ => (mixed >> (at % 4 * 8)) as u8 ^ at as u8,
        };
    }
}

/// The number of an intact datagram.
fn number(datagram: &[u8]) -> Option<u32> {
    let number = u32::from_be_bytes(*datagram.first_chunk()?);
    let mut expected = vec![0; datagram.len()];
    fill(number, &mut expected);
    (datagram == expected).then_some(number)
}

/// The received datagrams.
#[derive(Default)]
struct Received {
    corrupted: u64,
    /// The count of each number in intact datagrams.
    times: BTreeMap<u32, u64>,
}

impl Received {
    fn take(&mut self, datagram: &[u8]) {
        match number(datagram) {
            Some(number) => *self.times.entry(number).or_default() += 1,
            None => self.corrupted += 1,
        }
    }

    fn report(&self) -> Value {
        let intact: u64 = self.times.values().sum();
        json!({
            "received": intact + self.corrupted,
            "distinct": self.times.len(),
            "duplicated": intact - self.times.len() as u64,
            "corrupted": self.corrupted,
            "numbers": self.times.keys().collect::<Vec<_>>(),
        })
    }
}

fn receiver(bind: SocketAddr, group: Option<IpAddr>, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, None)?;
    socket.set_reuse_address(shared)?;
    socket.bind(&bind.into())?;
    match group {
        Some(IpAddr::V4(group)) => socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?,
        Some(IpAddr::V6(group)) => socket.join_multicast_v6(&group, 0)?,
        None => {}
    }
    Ok(socket.into())
}

fn udp_receive(socket: &UdpSocket, connect: Option<SocketAddr>, echo: bool) -> io::Result<Value> {
    enlarge(socket)?;
    if let Some(peer) = connect {
        socket.connect(peer)?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let ended = end_of_input();
    ready();
    let mut received = Received::default();
    let mut buffer = vec![0; 65536];
    let mut last = Instant::now();
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                received.take(&buffer[..length]);
                last = Instant::now();
                if echo {
                    socket.send_to(&buffer[..length], peer)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !ended.load(Ordering::SeqCst) {
                    last = Instant::now();
                } else if last.elapsed() > quiet() {
                    return Ok(received.report());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

struct UdpSend {
    count: u32,
    size: usize,
    connected: bool,
    replies: bool,
    pause_us: Option<u64>,
    endless: bool,
}

fn udp_send(to: SocketAddr, bind: Option<SocketAddr>, how: &UdpSend) -> io::Result<Value> {
    const BURST: u32 = 32;
    let any = match to.ip() {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(bind.unwrap_or(any))?;
    enlarge(&socket)?;
    socket.set_broadcast(true)?;
    // Without it, the kernel does not report drops by ENOBUFS (ip(7)).
    let (level, option) = match to.ip() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    set_option(&socket, level, option, 1)?;
    if how.connected {
        socket.connect(to)?;
    }
    let ended = how.endless.then(|| {
        ready();
        end_of_input()
    });
    let mut received = Received::default();
    let mut buffer = vec![0; 65536];
    let mut datagram = vec![0; how.size];
    let (mut sent, mut errors) = (0u32, BTreeMap::<String, u64>::new());
    for number in 0..how.count {
        if ended.as_ref().is_some_and(|ended| ended.load(Ordering::SeqCst)) {
            break;
        }
        fill(number, &mut datagram);
        let result =
            if how.connected { socket.send(&datagram) } else { socket.send_to(&datagram, to) };
        match result {
            Ok(_) => sent += 1,
            Err(error) => *errors.entry(name(&error)).or_default() += 1,
        }
        match how.pause_us {
            Some(microseconds) => thread::sleep(Duration::from_micros(microseconds)),
            None if number % BURST == BURST - 1 => thread::sleep(Duration::from_micros(100)),
            None => {}
        }
        if how.replies {
            socket.set_nonblocking(true)?;
            while let Ok(length) = socket.recv(&mut buffer) {
                received.take(&buffer[..length]);
            }
            socket.set_nonblocking(false)?;
        }
    }
    if how.replies {
        socket.set_read_timeout(Some(quiet()))?;
        while let Ok(length) = socket.recv(&mut buffer) {
            received.take(&buffer[..length]);
        }
    }
    let errors_total: u64 = errors.values().sum();
    Ok(json!({
        "sent": sent,
        "errors": errors_total,
        "error_names": errors,
        "replies": received.report(),
    }))
}

/// Sets buffers large enough for all packets of a test, so that only faults lose packets.
fn enlarge(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20)
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: `value` outlives the call and is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The byte at `offset` of every TCP stream.
fn byte(offset: usize) -> u8 {
    (offset ^ offset >> 8 ^ offset >> 16) as u8
}

/// The result of one direction of a stream.
#[derive(Clone, Debug, Default)]
struct Stream {
    bytes: usize,
    wrong: usize,
    error: Option<String>,
}

impl Stream {
    fn report(&self) -> Value {
        json!({"bytes": self.bytes, "wrong": self.wrong, "error": self.error})
    }

    fn take(&mut self, bytes: &[u8]) {
        self.wrong +=
            bytes.iter().zip(self.bytes..).filter(|&(&found, at)| found != byte(at)).count();
        self.bytes += bytes.len();
    }
}

/// Reads and checks until the end of the stream.
fn read_all(mut connection: &TcpStream) -> Stream {
    let mut stream = Stream::default();
    let mut buffer = vec![0; 65536];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return stream,
            Ok(length) => stream.take(&buffer[..length]),
            Err(error) => {
                stream.error = Some(name(&error));
                return stream;
            }
        }
    }
}

/// Writes and shuts down.
fn write_all(mut connection: &TcpStream, bytes: usize, chunk: usize) -> Stream {
    let mut stream = Stream::default();
    while stream.bytes < bytes {
        let length = chunk.min(bytes - stream.bytes);
        let data: Vec<u8> = (stream.bytes..stream.bytes + length).map(byte).collect();
        if let Err(error) = connection.write_all(&data) {
            stream.error = Some(name(&error));
            return stream;
        }
        stream.bytes += length;
    }
    // Fails only if the connection is broken, which the peer notices.
    let _ = connection.shutdown(Shutdown::Write);
    stream
}

/// Echoes received bytes.
fn echo_all(mut connection: &TcpStream) -> Stream {
    let mut stream = Stream::default();
    let mut buffer = vec![0; 65536];
    loop {
        let length = match connection.read(&mut buffer) {
            Ok(0) => return stream,
            Ok(length) => length,
            Err(error) => {
                stream.error = Some(name(&error));
                return stream;
            }
        };
        stream.take(&buffer[..length]);
        if let Err(error) = connection.write_all(&buffer[..length]) {
            stream.error = Some(name(&error));
            return stream;
        }
    }
}

/// A socket of multipath TCP (RFC 8684).
fn multipath_socket(for_address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(for_address);
    Socket::new(domain, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP)))
}

fn listen(bind: SocketAddr, mptcp: bool) -> io::Result<TcpListener> {
    if !mptcp {
        return TcpListener::bind(bind);
    }
    let socket = multipath_socket(bind)?;
    socket.set_reuse_address(true)?;
    socket.bind(&bind.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn connect(to: SocketAddr, timeout: Duration, mptcp: bool) -> io::Result<TcpStream> {
    if !mptcp {
        return TcpStream::connect_timeout(&to, timeout);
    }
    let socket = multipath_socket(to)?;
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(socket.into())
}

fn tcp_serve(
    bind: SocketAddr,
    mode: Mode,
    bytes: usize,
    chunk: usize,
    mptcp: bool,
) -> io::Result<Value> {
    let listener = listen(bind, mptcp)?;
    listener.set_nonblocking(true)?;
    let ended = end_of_input();
    ready();
    let streams = Arc::new(Mutex::new(Vec::new()));
    let mut mss = Vec::new();
    while !ended.load(Ordering::SeqCst) {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error),
        };
        mss.push(tcp_info(&connection)["mss"].clone());
        connection.set_nonblocking(false)?;
        connection.set_nodelay(true)?;
        let streams = Arc::clone(&streams);
        thread::spawn(move || {
            let stream = match mode {
                Mode::Sink => read_all(&connection),
                Mode::Source => write_all(&connection, bytes, chunk),
                Mode::Echo => echo_all(&connection),
            };
            if let Ok(mut streams) = streams.lock() {
                streams.push(stream);
            }
        });
    }
    let end = Instant::now() + quiet();
    loop {
        let Ok(streams) = streams.lock() else {
            return Err(io::Error::other("a thread panicked"));
        };
        if streams.len() == mss.len() || Instant::now() > end {
            let reports: Vec<Value> = streams.iter().map(Stream::report).collect();
            return Ok(json!({"accepted": mss.len(), "mss": mss, "streams": reports}));
        }
        drop(streams);
        thread::sleep(Duration::from_millis(5));
    }
}

fn tcp_flood(to: SocketAddr, connections: u32, time: Duration) -> io::Result<Value> {
    const CHUNK: usize = 4096;
    let flows: Vec<TcpStream> =
        (0..connections).map(|_| TcpStream::connect(to)).collect::<io::Result<_>>()?;
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let write = |mut flow: TcpStream| {
            let mut sent = 0;
            while start.elapsed() < time {
                let chunk: Vec<u8> = (sent..sent + CHUNK).map(byte).collect();
                flow.write_all(&chunk)?;
                sent += CHUNK;
                thread::sleep(Duration::from_millis(5));
            }
            flow.shutdown(Shutdown::Write)?;
            // Until the peer has read everything.
            flow.read_to_end(&mut Vec::new())?;
            Ok::<_, io::Error>(sent)
        };
        let flows: Vec<_> =
            flows.into_iter().map(|flow| scope.spawn(move || write(flow))).collect();
        // Regular output avoids the timeout of the test.
        while start.elapsed() < time {
            say(&json!({"event": "progress"}));
            thread::sleep(Duration::from_secs(5).min(time));
        }
        let sent = flows
            .into_iter()
            .map(|flow| flow.join().map_err(|_| io::Error::other("a flow panicked"))?);
        sent.sum::<io::Result<usize>>()
    })?;
    Ok(json!({ "bytes": bytes }))
}

fn tcp_connect(
    to: SocketAddr,
    mode: Mode,
    bytes: usize,
    chunk: usize,
    timeout: Duration,
    hold: bool,
    mptcp: bool,
) -> Value {
    let started = Instant::now();
    let connection = match connect(to, timeout, mptcp) {
        Ok(connection) => connection,
        Err(error) => {
            let elapsed_ms = started.elapsed().as_millis() as u64;
            return json!({"connected": false, "error": name(&error), "elapsed_ms": elapsed_ms});
        }
    };
    if hold {
        ready();
        let _ = io::stdin().read_line(&mut String::new());
    }
    let set = connection
        .set_nodelay(true)
        .and_then(|()| connection.set_read_timeout(Some(timeout)))
        .and_then(|()| connection.set_write_timeout(Some(timeout)));
    if let Err(error) = set {
        return json!({"connected": true, "error": name(&error)});
    }
    let (written, read, after_write) = thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&connection));
        let written = match mode {
            Mode::Source => Stream::default(),
            _ => write_all(&connection, bytes, chunk),
        };
        let after_write = tcp_info(&connection);
        (written, reader.join().unwrap_or_default(), after_write)
    });
    let at_end = tcp_info(&connection);
    json!({
        "connected": true,
        "error": written.error.as_ref().or(read.error.as_ref()),
        "written": written.report(),
        "read": read.report(),
        "after_write": after_write,
        "at_end": at_end,
        "elapsed_ms": started.elapsed().as_millis() as u64,
    })
}

/// The TCP state of a connection (tcp(7)).
fn tcp_info(connection: &TcpStream) -> Value {
    // SAFETY: tcp_info is plain data, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of_val(&info) as u32;
    // SAFETY: `info` is as long as is said.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Value::Null;
    }
    // Names of enum tcp_ca_state.
    let states = ["open", "disorder", "cwr", "recovery", "loss"];
    json!({
        "congestion": states.get(usize::from(info.tcpi_ca_state)),
        "mss": info.tcpi_snd_mss,
        "window": info.tcpi_snd_cwnd,
        "unacknowledged": info.tcpi_unacked,
        "retransmits": info.tcpi_total_retrans,
    })
}

fn raw_send(interface: &str, frames: &[String], count: u32) -> io::Result<Value> {
    let frames: Vec<Vec<u8>> = frames.iter().map(|text| bytes(text)).collect::<io::Result<_>>()?;
    // This socket receives nothing.
    let (socket, address) = packet_socket(interface, 0)?;
    let (mut sent, mut errors) = (0u64, 0u64);
    for _ in 0..count {
        for frame in &frames {
            // SAFETY: frame and address outlive the call and are as long as is said.
            let result = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const address).cast(),
                    size_of_val(&address) as u32,
                )
            };
            if result == frame.len().cast_signed() { sent += 1 } else { errors += 1 }
        }
    }
    Ok(json!({"sent": sent, "errors": errors}))
}

fn sniff(interface: &str, endings: &[String]) -> io::Result<Value> {
    const OUTGOING: u8 = libc::PACKET_OUTGOING;

    let endings: Vec<Vec<u8>> =
        endings.iter().map(|text| bytes(text)).collect::<io::Result<_>>()?;
    let (socket, _) = packet_socket(interface, (libc::ETH_P_ALL as u16).to_be())?;
    // Only functions common to packet and UDP sockets are used.
    let socket = UdpSocket::from(socket);
    enlarge(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let ended = end_of_input();
    ready();
    let mut buffer = vec![0u8; 65536];
    let mut count = 0u64;
    let mut last = Instant::now();
    loop {
        // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut from_length = size_of_val(&from) as u32;
        // SAFETY: buffer and address outlive the call and are as long as is said.
        let length = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_length,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            last = Instant::now();
            let frame = &buffer[..length];
            if from.sll_pkttype != OUTGOING && endings.iter().any(|end| frame.ends_with(end)) {
                count += 1;
            }
        } else if io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            return Err(io::Error::last_os_error());
        } else if !ended.load(Ordering::SeqCst) {
            last = Instant::now();
        } else if last.elapsed() > quiet() {
            return Ok(json!({"frames": count}));
        }
    }
}

/// A packet socket on an interface, for frames of this protocol (packet(7)), and the interface's address.
fn packet_socket(interface: &str, protocol: u16) -> io::Result<(OwnedFd, libc::sockaddr_ll)> {
    let interface = CString::new(interface)?;
    // SAFETY: the name is terminated.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    address.sll_protocol = protocol;
    let length = size_of_val(&address) as u32;
    // SAFETY: `address` outlives the call and is as long as is said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok((socket, address)) } else { Err(io::Error::last_os_error()) }
}

/// Parses hexadecimal text.
fn bytes(text: &str) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not hexadecimal");
    let byte = |pair: &[u8]| {
        let digits = str::from_utf8(pair).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    text.as_bytes().chunks(2).map(|pair| byte(pair).ok_or_else(invalid)).collect()
}

/// The errno(3) name of an error, for those that tests check.
fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNRESET) => "ECONNRESET".into(),
        Some(libc::ECONNREFUSED) => "ECONNREFUSED".into(),
        Some(libc::EPIPE) => "EPIPE".into(),
        Some(libc::ENOBUFS) => "ENOBUFS".into(),
        Some(libc::EPERM) => "EPERM".into(),
        Some(libc::EAGAIN | libc::ETIMEDOUT) => "timeout".into(),
        _ if error.kind() == io::ErrorKind::TimedOut => "timeout".into(),
        _ => error.to_string(),
    }
}
