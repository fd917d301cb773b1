//! What a held packet keeps: its priority, hence its class, its queue and its VLAN's priority bits; its flow's queue,
//! pacing and order.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, RawFd},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Family, Host, INJECTOR, Injector, Lab, Process, TIMEOUT, bpf::Counter, engines, ip, serve,
    skip, talk, wait_until,
};

/// Packets that each sender of a test sends.
const EACH: u64 = 10;

/// What packets are held by.
const FAULTS: [&str; 3] =
    ["--delay 20ms,jitter=5ms", "--rate 100mbit,queue=1s", "--delay 20ms --duplicate 100%"];

/// One test at a time: what one does would delay what another measures.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets by what `tc -s` shows about: `start` begins a part and is followed by its name, at `place` of its words.
type Counts = BTreeMap<String, u64>;

fn counts(host: &Host, show: &str, start: &str, place: usize) -> Counts {
    let mut name = None;
    let mut counts = Counts::new();
    for line in host.run(&format!("tc -s {show}")).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(start) {
            name = words.get(place).map(|&word| word.to_owned());
        } else if let ["Sent", _, "bytes", packets, ..] = words.as_slice()
            && let Some(name) = name.take()
        {
            counts.insert(name, packets.parse().expect("a number"));
        }
    }
    counts
}

fn htb_classes(host: &Host, device: &str) -> Counts {
    counts(host, &format!("class show dev {device}"), "class htb", 2)
}

/// Those of the classes that filters of the test choose, as far as any packet has come to them.
fn chosen(host: &Host, device: &str) -> Counts {
    let mut classes = htb_classes(host, device);
    // What no filter is about goes there.
    classes.remove("1:99");
    classes.retain(|_, count| *count > 0);
    classes
}

/// Those of single queues, below the handle 7.
fn queues(host: &Host) -> Counts {
    let all = counts(host, "qdisc show dev veth0", "qdisc", 4);
    all.into_iter().filter(|(name, _)| name.starts_with("7:")).collect()
}

/// What came on top, where anything did.
fn since(before: &Counts, after: &Counts) -> Counts {
    let added = |(name, &count): (&String, &u64)| {
        let added = count - before.get(name).copied().unwrap_or(0);
        (added > 0).then(|| (name.clone(), added))
    };
    after.iter().filter_map(added).collect()
}

fn set_option(socket: RawFd, option: i32, value: u32) {
    // SAFETY: `value` outlives the call and is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sockets of which each has this option set to one of the values.
fn sockets(host: &Host, option: i32, values: &[u32]) -> Vec<UdpSocket> {
    let socket = |&value: &u32| {
        let socket = host.inside(|| UdpSocket::bind("0.0.0.0:0")).expect("free");
        set_option(socket.as_raw_fd(), option, value);
        socket
    };
    values.iter().map(socket).collect()
}

/// [`rise_of`] a sender for each priority.
fn rise(
    host: &Host,
    to: SocketAddr,
    priorities: &[u32],
    times: u64,
    counts: impl Fn() -> Counts,
) -> Counts {
    rise_of(&sockets(host, libc::SO_PRIORITY, priorities), to, times, counts)
}

/// Has each socket send [`EACH`] datagrams, all in turns; returns by how much `counts` rises, once that is `times` as
/// many.
fn rise_of(
    sockets: &[UdpSocket],
    to: SocketAddr,
    times: u64,
    counts: impl Fn() -> Counts,
) -> Counts {
    let before = counts();
    for _ in 0..EACH {
        for socket in sockets {
            socket.send_to(&[1; 100], to).expect("there is a route");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let wanted = EACH * sockets.len() as u64 * times;
    let end = Instant::now() + TIMEOUT;
    loop {
        let found = since(&before, &counts());
        // What is missing then is told by the counts.
        if found.values().sum::<u64>() >= wanted || Instant::now() > end {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the same must be of a fault that doubles each packet.
fn doubled(control: &Counts, fault: &str) -> (Counts, u64) {
    let times = if fault.contains("--duplicate") { 2 } else { 1 };
    (control.iter().map(|(name, count)| (name.clone(), count * times)).collect(), times)
}

/// Ends an injector, which must have held so many packets at least, and left none as it was.
#[track_caller]
fn check_held(injector: Injector, least: u64) {
    let line = injector.started["rules"].to_string();
    let total = injector.stop().total;
    assert!(total.delayed >= least && total.skipped == 0, "{line}: {total:?}");
}

/// Whether a command that adds something to a host works here.
fn can(host: &Host, line: &str) -> bool {
    let mut words = line.split(' ');
    let mut add: Command = host.command(words.next().expect("a program"), None);
    let output = add.args(words).output().expect("iproute2 is installed");
    let is_added = output.status.success();
    if !is_added {
        skip(&format!("this kernel cannot: {line}"));
    }
    is_added
}

/// The commands that give a device 16 classes, and the priorities that name them.
fn htb(host: &Host, device: &str) -> Vec<u32> {
    host.run(&format!("tc qdisc add dev {device} root handle 1: htb default 99"));
    let minors: Vec<u32> = (0x10..0x20).chain([0x99]).collect();
    for minor in &minors {
        host.run(&format!(
            "tc class add dev {device} parent 1: classid 1:{minor:x} htb rate 1gbit quantum 60000"
        ));
    }
    minors[..16].iter().map(|minor| 0x1_0000 | minor).collect()
}

#[test]
fn sent_packets_keep_their_class() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, to) = (&lab.left, lab.right.at(Family::V4, 9000));
    let _sink = lab.right.inside(|| UdpSocket::bind(to)).expect("free");
    let priorities = htb(left, "veth0");
    let classes = || {
        let mut classes = htb_classes(left, "veth0");
        // What the host says of itself (IGMP, MLD) goes there.
        classes.remove("1:99");
        classes
    };
    let control = rise(left, to, &priorities, 1, classes);
    assert!(control.values().all(|&count| count == EACH) && control.len() == 16, "{control:?}");
    for engine in engines() {
        for fault in FAULTS {
            let line = format!(
                "--interface veth0 --no-protect --direction egress --engine {engine} {fault}"
            );
            let injector = Injector::start(left, &line);
            let (expected, times) = doubled(&control, fault);
            assert_eq!(rise(left, to, &priorities, times, classes), expected, "{engine} {fault}");
            check_held(injector, EACH * 16 * times);
        }
    }
}

/// Compares what `counts` shows of these senders under each fault of what the left host sends with what it shows
/// without one.
fn compare(lab: &Lab, sockets: &[UdpSocket], to: SocketAddr, counts: impl Fn() -> Counts) {
    let control = rise_of(sockets, to, 1, &counts);
    assert_eq!(control.values().sum::<u64>(), EACH * sockets.len() as u64, "{control:?}");
    assert!(control.len() > 1, "{control:?}");
    for engine in engines() {
        for fault in FAULTS {
            let line = format!(
                "--interface veth0 --no-protect --direction egress --engine {engine} {fault}"
            );
            let injector = Injector::start(&lab.left, &line);
            let (expected, times) = doubled(&control, fault);
            assert_eq!(rise_of(sockets, to, times, &counts), expected, "{engine} {fault}");
            check_held(injector, EACH * sockets.len() as u64 * times);
        }
    }
}

#[test]
fn sent_packets_keep_their_band_of_a_prio_qdisc() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, to) = (&lab.left, lab.right.at(Family::V4, 9000));
    let _sink = lab.right.inside(|| UdpSocket::bind(to)).expect("free");
    // What the host says of itself (IGMP, MLD) has priority 0 or 7.
    let add = "tc qdisc add dev veth0 root handle 1: prio bands 4 \
        priomap 3 0 1 3 3 2 3 3 3 3 3 3 3 3 3 3";
    if !can(left, &add.split_whitespace().collect::<Vec<_>>().join(" ")) {
        return;
    }
    let bands = || {
        let mut bands = counts(left, "class show dev veth0", "class prio", 2);
        bands.remove("1:4");
        bands
    };
    compare(&lab, &sockets(left, libc::SO_PRIORITY, &[1, 2, 5, 2]), to, bands);
}

#[test]
fn sent_packets_keep_the_class_of_their_mark() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, to) = (&lab.left, lab.right.at(Family::V4, 9000));
    let _sink = lab.right.inside(|| UdpSocket::bind(to)).expect("free");
    htb(left, "veth0");
    for mark in 1..5 {
        let line = "tc filter add dev veth0 parent 1: protocol ip";
        if !can(left, &format!("{line} handle {mark} fw classid 1:1{mark}")) {
            return;
        }
    }
    compare(&lab, &sockets(left, libc::SO_MARK, &[1, 2, 3, 4]), to, || chosen(left, "veth0"));
}

#[test]
fn sent_packets_keep_the_class_of_their_hash() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, to) = (&lab.left, lab.right.at(Family::V4, 9000));
    let _sink = lab.right.inside(|| UdpSocket::bind(to)).expect("free");
    htb(left, "veth0");
    let line = "tc filter add dev veth0 parent 1: protocol ip handle 1 flow";
    if !can(left, &format!("{line} hash keys rxhash divisor 15 baseclass 1:10")) {
        return;
    }
    // A connected socket has a hash of its own; that of others is computed of the packet when needed.
    let sockets = sockets(left, libc::SO_PRIORITY, &[0; 12]);
    sockets[6..].iter().for_each(|socket| socket.connect(to).expect("there is a route"));
    compare(&lab, &sockets, to, || chosen(left, "veth0"));
}

#[test]
fn forwarded_packets_keep_the_class_of_their_tc_index() {
    /// Bits that injector itself takes last.
    const INDEX: u16 = 0xc000;
    let _turn = turn();
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    // Left bridges to a port where nobody answers.
    ip(
        &["-n", &left.netns],
        "link add br0 type bridge\nlink add out0 type veth peer name end0\nlink set br0 up\n\
         link set out0 master br0\nlink set veth0 master br0\nlink set out0 up\nlink set end0 up\n",
    );
    let beyond = Ipv4Addr::new(10, 9, 0, 99);
    let neighbour =
        format!("neigh add {beyond} lladdr 02:00:00:00:09:99 dev veth0 nud permanent\n");
    ip(&["-n", &right.netns], &neighbour);
    htb(left, "out0");
    let mut add = left.command("tc", None);
    let line = "filter add dev out0 parent 1: protocol ip basic match";
    add.args(line.split(' ')).arg(format!("meta(tc_index mask {INDEX} eq {INDEX})"));
    let output = add.args(["classid", "1:15"]).output().expect("iproute2 is installed");
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        skip(&format!("this kernel cannot: tc filter … basic match meta(tc_index …): {error}"));
        return;
    }
    left.run("tc qdisc add dev veth0 clsact");
    Counter::with_index(INDEX).filter(left, "ingress", 7);
    let to = SocketAddr::from((beyond, 9000));
    let senders = sockets(right, libc::SO_PRIORITY, &[0; 4]);
    let end = Instant::now() + TIMEOUT;
    // The ports forward as soon as the bridge has noticed that they are up.
    while chosen(left, "out0").is_empty() {
        senders[0].send_to(&[1], to).expect("there is a route");
        thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < end, "nothing is forwarded");
    }
    for engine in engines() {
        for fault in FAULTS {
            let line = format!(
                "--interface out0 --no-protect --direction egress --engine {engine} {fault}"
            );
            let injector = Injector::start(left, &line);
            let times = doubled(&Counts::new(), fault).1;
            let found = rise_of(&senders, to, times, || chosen(left, "out0"));
            let expected = Counts::from([("1:15".into(), EACH * 4 * times)]);
            assert_eq!(found, expected, "{engine} {fault}");
            check_held(injector, EACH * 4 * times);
        }
    }
}

#[test]
fn sent_packets_keep_the_queues_of_their_priority() {
    const MQPRIO: &str = "tc qdisc add dev veth0 root handle 7: mqprio num_tc 4 \
        map 0 1 2 3 0 0 0 0 0 0 0 0 0 0 0 0 queues 1@0 1@1 1@2 1@3 hw 0";
    let _turn = turn();
    let lab = Lab::with_queues(4);
    let (left, to) = (&lab.left, lab.right.at(Family::V4, 9000));
    let _sink = lab.right.inside(|| UdpSocket::bind(to)).expect("free");
    if !can(left, &MQPRIO.split_whitespace().collect::<Vec<_>>().join(" ")) {
        return;
    }
    let control = rise(left, to, &[0, 1, 2, 3], 1, || queues(left));
    assert!(control.values().all(|&count| count == EACH) && control.len() == 4, "{control:?}");
    for engine in engines() {
        for fault in FAULTS {
            let line = format!(
                "--interface veth0 --no-protect --direction egress --engine {engine} {fault}"
            );
            let injector = Injector::start(left, &line);
            let (expected, times) = doubled(&control, fault);
            let found = rise(left, to, &[0, 1, 2, 3], times, || queues(left));
            assert_eq!(found, expected, "{engine} {fault}");
            check_held(injector, EACH * 4 * times);
        }
    }
}

#[test]
fn sent_packets_keep_the_priority_bits_of_their_vlan() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    let add = "ip link add link veth0 name v5 type vlan id 5";
    let map: Vec<_> = (1..7).map(|n| format!("{n}:{n}")).collect();
    if !can(left, &format!("{add} egress-qos-map {}", map.join(" "))) {
        return;
    }
    right.run("tc qdisc add dev veth0 clsact");
    let seen = |bits: u32| {
        format!(
            "tc filter add dev veth0 ingress pref {} protocol 802.1Q flower vlan_id 5 vlan_prio {bits} action ok",
            bits + 1
        )
    };
    if !can(right, &seen(0)) {
        return;
    }
    (1..7).for_each(|bits| drop(right.run(&seen(bits))));
    right.run(add);
    for (host, address) in [(left, 1), (right, 2)] {
        ip(&["-n", &host.netns], &format!("addr add 10.8.5.{address}/24 dev v5\nlink set v5 up\n"));
    }
    let to = SocketAddr::from(([10, 8, 5, 2], 9000));
    let _sink = right.inside(|| UdpSocket::bind(to)).expect("free");
    wait_until(TIMEOUT, "an answer", || left.ping(None, to.ip(), 1) == 1);
    let bits = || {
        let text = right.run("tc -s filter show dev veth0 ingress");
        let (mut name, mut counts) = (None, Counts::new());
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["vlan_prio", bits] => name = Some((*bits).to_owned()),
                ["Sent", _, "bytes", packets, ..] => {
                    let name = name.take().expect("a filter's priority");
                    // What else the hosts say has none, or 7, which is not mapped.
                    if name != "0" {
                        counts.insert(name, packets.parse().expect("a number"));
                    }
                }
                _ => {}
            }
        }
        counts
    };
    // 7 is what the kernel itself gives to its multicast and neighbour messages.
    let priorities = [1, 2, 3, 4, 5, 6];
    let control = rise(left, to, &priorities, 1, bits);
    assert!(control.values().all(|&count| count == EACH) && control.len() == 6, "{control:?}");
    for engine in engines() {
        // What leaves the VLAN's own device has its bits already.
        for device in ["v5", "veth0"] {
            for fault in FAULTS {
                let line = format!(
                    "--interface {device} --no-protect --direction egress --engine {engine} {fault}"
                );
                let injector = Injector::start(left, &line);
                let (expected, times) = doubled(&control, fault);
                let found = rise(left, to, &priorities, times, bits);
                assert_eq!(found, expected, "{engine} {device} {fault}");
                check_held(injector, EACH * 6 * times);
            }
        }
    }
}

#[test]
fn received_packets_keep_the_priority_of_their_vlan() {
    let _turn = turn();
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    let add = "ip link add link veth0 name v5 type vlan id 5";
    let out: Vec<_> = (1..7).map(|n| format!("{n}:{n}")).collect();
    // To classes 1:11 to 1:16 of the port that they leave by.
    let in_: Vec<_> = (1..7).map(|n| format!("{n}:{}", 0x1_0010 + n)).collect();
    if !can(right, &format!("{add} egress-qos-map {}", out.join(" "))) {
        return;
    }
    left.run(&format!("{add} ingress-qos-map {}", in_.join(" ")));
    // Left bridges the VLAN to a port where nobody answers.
    ip(
        &["-n", &left.netns],
        "link add br0 type bridge\nlink add out0 type veth peer name end0\nlink set br0 up\n\
         link set out0 master br0\nlink set v5 master br0\nlink set out0 up\nlink set end0 up\nlink set v5 up\n",
    );
    ip(
        &["-n", &right.netns],
        "link set v5 up\naddr add 10.8.5.2/24 dev v5\n\
         neigh add 10.8.5.3 lladdr 02:00:00:00:05:03 dev v5 nud permanent\n",
    );
    htb(left, "out0");
    let classes = || {
        let mut classes = htb_classes(left, "out0");
        // What else the hosts say goes there.
        classes.remove("1:99");
        classes
    };
    let to = SocketAddr::from((Ipv4Addr::new(10, 8, 5, 3), 9000));
    // 7 is what the kernel itself gives to its multicast and neighbour messages.
    let priorities = [1, 2, 3, 4, 5, 6];
    let end = Instant::now() + TIMEOUT;
    let control = loop {
        // The ports forward as soon as the bridge has noticed that they are up.
        let before = classes();
        let socket = right.inside(|| UdpSocket::bind("0.0.0.0:0")).expect("free");
        set_option(socket.as_raw_fd(), libc::SO_PRIORITY, 1);
        socket.send_to(&[1; 100], to).expect("there is a route");
        thread::sleep(Duration::from_millis(20));
        if !since(&before, &classes()).is_empty() {
            break rise(right, to, &priorities, 1, classes);
        }
        assert!(Instant::now() < end, "nothing is forwarded");
    };
    assert!(control.values().all(|&count| count == EACH) && control.len() == 6, "{control:?}");
    for engine in engines() {
        // On the VLAN's device, and on the one below it, where packets have a tag of their own.
        let faults = FAULTS.into_iter().chain(["--duplicate 100%"]);
        for (device, fault) in faults.flat_map(|fault| [("v5", fault), ("veth0", fault)]) {
            let engine =
                if fault.starts_with("--dup") { "" } else { &format!("--engine {engine}") };
            let line =
                format!("--interface {device} --no-protect --direction ingress {engine} {fault}");
            let injector = Injector::start(left, &line);
            let (expected, times) = doubled(&control, fault);
            let found = rise(right, to, &priorities, times, classes);
            assert_eq!(found, expected, "{engine} {device} {fault}");
            let held = if engine.is_empty() { 0 } else { EACH * 6 * times };
            check_held(injector, held);
        }
    }
}

#[test]
fn a_connection_stays_in_its_queue() {
    const CONNECTIONS: usize = 8;
    let _turn = turn();
    let lab = Lab::with_queues(4);
    let left = &lab.left;
    left.run("tc qdisc add dev veth0 root handle 7: mq");
    let at = lab.right.at(Family::V4, 9000);
    let listener = lab.right.inside(|| TcpListener::bind(at)).expect("free");
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let out = left.inside(|| TcpStream::connect(at)).expect("it listens");
            (out, listener.accept().expect("it has connected").0)
        })
        .collect();
    // Which queue each connection's data leaves by.
    let used = || -> Vec<BTreeSet<String>> {
        let each = connections.iter().map(|(out, end)| {
            let (mut out, mut end) = (out, end);
            let before = queues(left);
            let mut data = [1; 1000];
            for _ in 0..EACH {
                out.write_all(&data).expect("it is connected");
                end.read_exact(&mut data).expect("all of it comes");
            }
            let used = since(&before, &queues(left));
            // Fewer are what the host says of itself (IGMP, MLD).
            used.into_iter().filter(|&(_, count)| count >= EACH).map(|(name, _)| name).collect()
        });
        each.collect()
    };
    let control = used();
    assert!(control.iter().all(|queues| queues.len() == 1), "{control:?}");
    for engine in engines() {
        let line = format!(
            "--interface veth0 --no-protect --direction egress --engine {engine} --delay 20ms"
        );
        let injector = Injector::start(left, &line);
        assert_eq!(used(), control, "{engine}");
        assert!(injector.stop().total.delayed >= CONNECTIONS as u64);
    }
}

#[test]
fn a_connection_that_fq_paces_is_paced_while_it_is_delayed() {
    /// Bytes per second.
    const RATE: u32 = 1_000_000;
    /// A stall of the machine is followed by a burst, which counts as a higher rate.
    const ATTEMPTS: usize = 4;
    let _turn = turn();
    let lab = Lab::new();
    let left = &lab.left;
    if !can(left, "tc qdisc add dev veth0 root fq") {
        return;
    }
    let at = lab.right.at(Family::V4, 9000);
    let listener = lab.right.inside(|| TcpListener::bind(at)).expect("free");
    let out = left.inside(|| TcpStream::connect(at)).expect("it listens");
    set_option(out.as_raw_fd(), libc::SO_MAX_PACING_RATE, RATE);
    out.set_write_timeout(Some(Duration::from_millis(10))).expect("it is a socket");
    let (end, _) = listener.accept().expect("it has connected");
    end.set_read_timeout(Some(Duration::from_millis(10))).expect("it is a socket");
    let (ended, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let data = vec![1; 65536];
            while !ended.load(Ordering::Relaxed) {
                // Times out while there is no room.
                let _ = (&out).write(&data);
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 65536];
            while !ended.load(Ordering::Relaxed) {
                let length = (&end).read(&mut buffer).unwrap_or(0);
                count.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let right = (0.5 * f64::from(RATE))..(1.5 * f64::from(RATE));
        let measure = || {
            thread::sleep(Duration::from_millis(500));
            let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
            thread::sleep(Duration::from_secs(2));
            (count.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
        };
        let rate = || {
            let mut rates = Vec::new();
            while rates.len() < ATTEMPTS && rates.last().is_none_or(|rate| !right.contains(rate)) {
                rates.push(measure());
            }
            rates
        };
        let (mut rates, mut means) = (vec![("control", rate())], Vec::new());
        for engine in engines() {
            let line = format!(
                "--interface veth0 --no-protect --direction egress --engine {engine} --delay 30ms"
            );
            let injector = Injector::start(left, &line);
            rates.push((engine, rate()));
            let told = injector.stop().total.delay["egress"].clone();
            means.push(told["sum_ms"].as_f64().zip(told["count"].as_f64()).map(|(a, b)| a / b));
        }
        // The threads end even if an assertion fails.
        ended.store(true, Ordering::Relaxed);
        let is_right = |rates: &[f64]| rates.last().is_some_and(|rate| right.contains(rate));
        assert!(rates.iter().all(|(_, rates)| is_right(rates)), "{rates:?}");
        // What it waited for its own pacing is not the fault's.
        let is_told = |mean: &Option<f64>| mean.is_some_and(|mean| (mean - 30.0).abs() < 0.1);
        assert!(means.iter().all(is_told), "{means:?}");
    });
}

#[test]
fn flows_keep_their_order_in_the_namespace_that_sys_shows() {
    const FLOWS: u64 = 4;
    const COUNT: usize = 20_000;
    let _turn = turn();
    if !engines().contains(&"edt") {
        skip("no fq, hence no edt engine");
        return;
    }
    let lab = Lab::new();
    // As a shell there: with /sys of the same namespace.
    let exec = |program: &str, line: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.left.netns, program]).args(line.split_whitespace());
        command
    };
    let line = "inject --output json --interface veth0 --for forever --no-protect --engine edt --direction egress --delay 20ms";
    let mut injector = Process::start(exec(INJECTOR, line));
    injector.wait_for("started");
    let script = "cat /sys/class/net/injback*/queues/rx-0/rps_cpus";
    let output = exec("bash", "-c").arg(script).output().expect("it can be run");
    let mask = String::from_utf8(output.stdout).expect("text");
    let processors = thread::available_parallelism().expect("some").get();
    let bits: u32 = mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
    assert_eq!(bits as usize, processors, "{mask}");

    let at = lab.right.at(Family::V4, 9000);
    let receiver = serve(&lab.right, None, &format!("stamp-receive --bind {at}"));
    let line =
        format!("stamp-send --to {at} --count {COUNT} --size 300 --every-us 75 --flows {FLOWS}");
    talk(&lab.left, None, &line);
    thread::sleep(Duration::from_millis(200));
    let report = receiver.finish();
    let numbers = report["numbers"].as_array().expect("a list").iter();
    let numbers: Vec<u64> = numbers.map(|number| number.as_u64().expect("a number")).collect();
    // A busy machine's backlog may overflow; what comes is in order.
    assert!(numbers.len() > COUNT / 4, "{}", numbers.len());
    for flow in 0..FLOWS {
        assert!(numbers.iter().filter(|number| *number % FLOWS == flow).is_sorted(), "flow {flow}");
    }
    injector.signal(nix::sys::signal::Signal::SIGTERM);
    injector.finish();
}
