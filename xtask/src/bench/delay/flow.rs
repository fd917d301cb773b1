//! Traffic through a delayed link.

use std::{
    fs,
    io::{ErrorKind, IoSliceMut, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};

use super::super::{link::Link, rules::remote};

/// TCP windows large enough for a delay of 100 ms.
const BUFFERS: [(&str, &str); 2] =
    [("tcp_rmem", "4096 131072 134217728"), ("tcp_wmem", "4096 131072 134217728")];

/// The timeout of socket calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a late sender of a given rate makes up for.
const CATCH_UP: Duration = Duration::from_millis(50);

/// The UDP payload in bytes for measuring packet rates.
const SMALL_PAYLOAD: usize = 64;

/// The UDP payload in bytes for measuring bit rates.
pub const LARGE_PAYLOAD: usize = 1400;

/// The results of a TCP flow.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// The rate of received bits a second.
    pub rate: f64,
    /// The total CPU time in seconds per 10^9 bytes.
    pub cpu_per_gigabyte: f64,
}

/// The results of a UDP flow: one-way delays.
#[derive(Clone, Debug)]
pub struct Delays {
    /// Delays in milliseconds, ascending.
    sorted: Vec<f64>,
    /// The number of packets sent.
    pub sent: usize,
    /// The duration of sending.
    took: Duration,
}

impl Delays {
    /// The received packets per second of sending.
    pub fn rate(&self) -> f64 {
        self.received() as f64 / self.took.as_secs_f64()
    }

    /// The number of packets received.
    pub const fn received(&self) -> usize {
        self.sorted.len()
    }

    /// The mean, in milliseconds.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The standard deviation, in milliseconds.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.sorted.iter().map(|delay| (delay - mean).powi(2));
        (squares.sum::<f64>() / self.sorted.len() as f64).sqrt()
    }

    /// The quantile of a fraction, in milliseconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let place = (self.sorted.len() as f64 * part) as usize;
        self.sorted.get(place.min(self.sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

/// The two ends.
#[derive(Debug)]
pub struct Flows<'a> {
    link: &'a Link,
    port: AtomicU64,
}

impl<'a> Flows<'a> {
    /// Configures both ends.
    pub fn new(link: &'a Link) -> Result<Self> {
        for end in [&link.near, &link.far] {
            end.run(|| {
                for (name, value) in BUFFERS {
                    // Write to the namespace of the thread.
                    fs::write(format!("/proc/sys/net/ipv4/{name}"), value).context(name)?;
                }
                Ok(())
            })?;
        }
        Ok(Self { link, port: AtomicU64::new(20_000) })
    }

    /// An unused port, and its address for the near end.
    fn address(&self) -> (u16, SocketAddrV4) {
        let port = self.port.fetch_add(1, Ordering::Relaxed) as u16;
        (port, SocketAddrV4::new(remote(1), port))
    }

    /// Measures a TCP flow for `time`, after a warm-up of the same length but at most 2 s. Its application
    /// offers this many bits a second, or as many as the flow takes.
    pub fn tcp(&self, time: Duration, offered: Option<f64>) -> Result<Tcp> {
        let (port, peer) = self.address();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let listener = self.link.far.run(|| Ok(TcpListener::bind(any)?))?;
        let near =
            self.link.near.run(|| Ok(TcpStream::connect_timeout(&peer.into(), CALL_TIMEOUT)?))?;
        let (far, _) = listener.accept()?;
        near.set_write_timeout(Some(CALL_TIMEOUT))?;
        far.set_read_timeout(Some(CALL_TIMEOUT))?;
        let ends = AtomicBool::new(false);
        let count = AtomicU64::new(0);
        let (ends, count) = (&ends, &count);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let mut chunk = vec![1; 256 << 10];
                let mut far = &far;
                loop {
                    match far.read(&mut chunk)? {
                        0 => return Ok::<_, anyhow::Error>(()),
                        bytes => count.fetch_add(bytes as u64, Ordering::Relaxed),
                    };
                }
            });
            let sender = scope.spawn(move || {
                let chunk = vec![1; 128 << 10];
                let mut near = &near;
                let mut next = Instant::now();
                while !ends.load(Ordering::Relaxed) {
                    near.write_all(&chunk)?;
                    if let Some(rate) = offered {
                        let now = Instant::now();
                        // What a slow start has held up is not sent afterwards.
                        next = next.max(now.checked_sub(CATCH_UP).unwrap_or(now))
                            + Duration::from_secs_f64(chunk.len() as f64 * 8.0 / rate);
                        thread::sleep(next.saturating_duration_since(now));
                    }
                }
                Ok::<_, anyhow::Error>(near.shutdown(std::net::Shutdown::Both)?)
            });
            thread::sleep(time.min(Duration::from_secs(2)));
            let (start, busy, before) = (Instant::now(), busy()?, count.load(Ordering::Relaxed));
            thread::sleep(time);
            let bytes = (count.load(Ordering::Relaxed) - before) as f64;
            let (took, busy) = (start.elapsed(), self::busy()? - busy);
            ends.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| anyhow!("the sender panicked"))?.context("cannot send")?;
            receiver
                .join()
                .map_err(|_| anyhow!("the receiver panicked"))?
                .context("cannot receive")?;
            Ok(Tcp {
                rate: bytes * 8.0 / took.as_secs_f64(),
                cpu_per_gigabyte: busy / (bytes / 1e9),
            })
        })
    }

    /// The maximum UDP packet rate without loss, to within 5 %.
    pub fn lossless_udp(&self, time: Duration, delay: Duration) -> Result<f64> {
        let passes = |rate: f64| -> Result<bool> {
            let count = (rate * time.as_secs_f64()) as u32;
            let delays = self.udp(count, Duration::from_secs_f64(1.0 / rate), delay)?;
            Ok(delays.received() == count as usize
                && delays.took.as_secs_f64() < time.as_secs_f64() * 1.05)
        };
        // Take two of three attempts, as the machine may stall.
        let good =
            |rate: f64| Ok::<_, anyhow::Error>(passes(rate)? || (passes(rate)? && passes(rate)?));
        let (mut low, mut high) = (1000.0, 4000.0);
        while good(high)? {
            (low, high) = (high, high * 2.0);
            ensure!(high < 1e8, "nothing is ever lost");
        }
        while high / low > 1.05 {
            let middle = f64::sqrt(low * high);
            if good(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// The received bit rate of UDP sent at `rate` bits a second for `time`.
    pub fn steady_udp(&self, rate: f64, time: Duration, delay: Duration) -> Result<f64> {
        let bits = LARGE_PAYLOAD as f64 * 8.0;
        let count = (rate / bits * time.as_secs_f64()) as u32;
        let pause = Duration::from_secs_f64(bits / rate);
        Ok(self.datagrams(LARGE_PAYLOAD, count, pause, delay)?.rate() * bits)
    }

    /// The delays of `count` small UDP packets, one each `pause`.
    pub fn udp(&self, count: u32, pause: Duration, delay: Duration) -> Result<Delays> {
        self.datagrams(SMALL_PAYLOAD, count, pause, delay)
    }

    fn datagrams(
        &self,
        size: usize,
        count: u32,
        pause: Duration,
        delay: Duration,
    ) -> Result<Delays> {
        let (arrivals, took) = self.arrivals(size, count, pause, delay)?;
        let mut sorted: Vec<f64> = arrivals.iter().map(Arrival::delay_ms).collect();
        sorted.sort_by(f64::total_cmp);
        Ok(Delays { sorted, sent: count as usize, took })
    }

    /// The arrivals of `count` UDP packets with `size` bytes of payload, in order, one sent each
    /// `pause`, and the duration of sending. `delay` is the longest time on the way.
    pub fn arrivals(
        &self,
        size: usize,
        count: u32,
        pause: Duration,
        delay: Duration,
    ) -> Result<(Vec<Arrival>, Duration)> {
        let (port, peer) = self.address();
        let far = self.link.far.run(|| {
            let far = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
            setsockopt(&far.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
            setsockopt(&far.as_fd(), sockopt::ReceiveTimestampns, &true)?;
            far.set_read_timeout(Some(Duration::from_millis(10)))?;
            Ok(far)
        })?;
        let near = self.link.near.run(|| {
            let near = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            near.connect(peer)?;
            Ok(near)
        })?;
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&far, &ends));
            let sent = send(&near, size, count, pause);
            thread::sleep(delay + Duration::from_millis(300));
            ends.store(true, Ordering::Relaxed);
            let arrivals = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
            Ok((arrivals, sent.context("cannot send")?))
        })
    }
}

/// Sends packets with timestamps on schedule; overdue ones at once. Returns the duration.
fn send(socket: &UdpSocket, size: usize, count: u32, pause: Duration) -> Result<Duration> {
    let mut packet = vec![0; size];
    let start = Instant::now();
    for number in 0..count {
        let due = start + pause.mul_f64(f64::from(number));
        let left = due.saturating_duration_since(Instant::now());
        // Sleeping overshoots: overdue packets are sent together.
        if left > Duration::from_micros(100) {
            thread::sleep(left);
        }
        packet[..8].copy_from_slice(&now_ns(ClockId::CLOCK_REALTIME)?.to_be_bytes());
        match socket.send(&packet) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            result => {
                result?;
            }
        }
    }
    Ok(start.elapsed())
}

/// A received packet, with wall-clock times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When it was sent.
    pub sent_ns: u64,
    /// When it was received.
    pub received_ns: u64,
}

impl Arrival {
    fn delay_ms(&self) -> f64 {
        (self.received_ns as f64 - self.sent_ns as f64) / 1e6
    }
}

/// Receives until `ends` is set. Returns all packets in the order of arrival.
fn receive(socket: &UdpSocket, ends: &AtomicBool) -> Result<Vec<Arrival>> {
    let mut packet = [0; LARGE_PAYLOAD];
    let mut arrivals = Vec::new();
    let mut space = nix::cmsg_space!(libc::timespec);
    loop {
        let mut parts = [IoSliceMut::new(&mut packet)];
        let got = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        );
        let time = match got {
            Ok(message) => message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            }),
            Err(Errno::EAGAIN | Errno::EINTR) if ends.load(Ordering::Relaxed) => {
                return Ok(arrivals);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let received_ns = u64::try_from(time.context("no time of receipt")?.as_nanos())?;
        let (stamp, _) = packet.split_first_chunk().context("a short packet")?;
        arrivals.push(Arrival { sent_ns: u64::from_be_bytes(*stamp), received_ns });
    }
}

fn now_ns(clock: ClockId) -> Result<u64> {
    Ok(u64::try_from(Duration::from(clock_gettime(clock)?).as_nanos())?)
}

/// The total busy time of all CPUs in seconds (`proc_stat(5)`).
fn busy() -> Result<f64> {
    /// `USER_HZ`, the same on all supported machines.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = *ticks.as_slice() else {
        anyhow::bail!("an unknown /proc/stat: {line}");
    };
    Ok((user + nice + system + irq + softirq) / TICKS)
}
