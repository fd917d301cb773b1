//! Nothing that is corrupted on the wire comes out of the kernel's own tunnels, also where the far end does not verify
//! what was inside (`WireGuard`).

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
};

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab, TIMEOUT, ip, number, serve, skip, talk,
    wait_until,
};

/// The tunnel's name at both ends.
const TUNNEL: &str = "tun0";

/// The cable below it.
const CABLE: &str = "under0";

/// What each connection sends, and gets back.
const BYTES: u64 = 300_000;

/// A kind of tunnel.
struct Kind {
    /// As `ip link add type` has it.
    name: &'static str,
    /// What it carries.
    families: &'static [Family],
    /// Where packets are corrupted.
    places: &'static [Place],
}

#[derive(Clone, Copy)]
enum Place {
    /// At the router's end of the tunnel.
    Tunnel(&'static str),
    /// On the cable below the tunnel, at the router's end.
    Cable(&'static str),
    /// Where the router's clients are.
    Router(&'static str),
    /// At a client.
    Client(&'static str),
}

const ENDS: &[Place] = &[
    Place::Tunnel("egress"),
    Place::Tunnel("ingress"),
    Place::Cable("egress"),
    Place::Cable("ingress"),
];

/// Injector refuses the end of such a tunnel, which has no link layer that it knows.
const BELOW: &[Place] =
    &[Place::Cable("egress"), Place::Cable("ingress"), Place::Router("ingress")];

const EVERYWHERE: &[Place] = &[
    Place::Tunnel("egress"),
    Place::Tunnel("ingress"),
    Place::Router("egress"),
    Place::Router("ingress"),
    Place::Client("egress"),
    Place::Client("ingress"),
];

const KINDS: [Kind; 5] = [
    Kind { name: "wireguard", families: &FAMILIES, places: EVERYWHERE },
    Kind { name: "gre", families: &FAMILIES, places: BELOW },
    Kind { name: "ipip", families: &[Family::V4], places: ENDS },
    Kind { name: "sit", families: &[Family::V6], places: ENDS },
    // Without IPv6, whose neighbour discovery would be counted with the pings.
    Kind { name: "vxlan id 5 dstport 4789", families: &[Family::V4], places: ENDS },
];

/// The address of one end of the tunnel.
fn inside(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 8, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// The address of one end of the cable.
fn outside(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 7, 0, n as u8)
}

/// A client, a router, and a server that a tunnel leads to.
struct Net {
    clients: Lab,
    beyond: Lab,
}

impl Net {
    /// Makes a tunnel of a kind; `None` where this cannot be done, which is said.
    fn new(kind: &Kind) -> Option<Self> {
        let net = Self { clients: Lab::new(), beyond: Lab::new() };
        let hosts = [net.router(), net.server()];
        let [router, server] = hosts.map(|host| &host.netns);
        ip(
            &[],
            &format!(
                "link add {CABLE} netns {router} type veth peer name {CABLE} netns {server}\n"
            ),
        );
        for (host, n) in hosts.iter().zip(1..) {
            let (own, far) = (outside(n), outside(3 - n));
            ip(
                &["-n", &host.netns],
                &format!("addr add {own}/24 dev {CABLE}\nlink set {CABLE} up\n"),
            );
            let ends =
                if kind.name == "wireguard" { "" } else { &format!("local {own} remote {far}") };
            if !can(host, &format!("ip link add {TUNNEL} type {} {ends}", kind.name)) {
                return None;
            }
        }
        if kind.name == "wireguard" && !net.exchange_keys() {
            return None;
        }
        for (host, n) in hosts.iter().zip(1..) {
            let mut batch =
                format!("link set {TUNNEL} addrgenmode none\nlink set {TUNNEL} mtu 1400 up\n");
            for &family in kind.families {
                let (length, more) = if family == Family::V4 { (24, "") } else { (64, "nodad") };
                let own = inside(family, n);
                writeln!(batch, "addr add {own}/{length} dev {TUNNEL} {more}").expect("a string");
            }
            ip(&["-n", &host.netns], &batch);
        }
        net.lead_there(kind);
        let far = inside(kind.families[0], 2);
        // WireGuard's ends must have shaken hands.
        wait_until(TIMEOUT, "an answer", || net.router().ping(None, far, 1) == 1);
        Some(net)
    }

    fn client(&self) -> &Host {
        &self.clients.right
    }

    fn router(&self) -> &Host {
        &self.clients.left
    }

    fn server(&self) -> &Host {
        &self.beyond.left
    }

    /// Makes keys for both ends of a `WireGuard` tunnel; whether this can be done.
    fn exchange_keys(&self) -> bool {
        const SCRIPT: &str = "umask 077 && wg genkey >\"$0\" && \
            wg set tun0 private-key \"$0\" listen-port 51820 && rm \"$0\" && wg show tun0 public-key";
        let hosts = [self.router(), self.server()];
        if Command::new("wg").arg("--version").output().is_err() {
            skip("no wg: tunnels of wireguard are not tested");
            return false;
        }
        let keys = hosts.map(|host| {
            let mut command = host.command("bash", None);
            let output = command.args(["-c", SCRIPT]).arg(testbed::scratch_file()).output();
            let output = output.expect("bash is here");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        });
        for (host, n) in hosts.iter().zip(1..) {
            host.run(&format!(
                "wg set {TUNNEL} peer {} endpoint {}:51820 allowed-ips 0.0.0.0/0,::/0",
                keys[2 - n],
                outside(3 - n)
            ));
        }
        true
    }

    /// Routes between the client and the server. The client makes its checksums itself, and sends segments that fit
    /// into the tunnel.
    fn lead_there(&self, kind: &Kind) {
        let (client, router, server) = (self.client(), self.router(), self.server());
        for host in [client, router] {
            host.run(&format!("ethtool -K {INTERFACE} tx off"));
        }
        self.clients.without_segmentation();
        router.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        ip(&["-n", &server.netns], &format!("link set {INTERFACE} down\n"));
        for &family in kind.families {
            let (way, back) = match family {
                Family::V4 => ("10.8.0.0/24", "10.9.0.0/24"),
                Family::V6 => ("fd08::/64", "fd09::/64"),
            };
            client.run(&format!("ip route add {way} via {} mtu 1400", router.address(family)));
            server.run(&format!("ip route add {back} via {} dev {TUNNEL}", inside(family, 1)));
        }
    }

    /// Where injector runs, and what it is given.
    fn at(&self, place: Place) -> (&Host, String) {
        let (host, interface, direction) = match place {
            Place::Tunnel(direction) => (self.router(), TUNNEL, direction),
            Place::Cable(direction) => (self.router(), CABLE, direction),
            Place::Router(direction) => (self.router(), INTERFACE, direction),
            Place::Client(direction) => (self.client(), INTERFACE, direction),
        };
        (host, format!("--interface {interface} --no-protect --direction {direction}"))
    }
}

/// Whether a command that adds a device works here; else says that it does not.
fn can(host: &Host, line: &str) -> bool {
    let line = line.trim();
    let mut words = line.split(' ');
    let mut add = host.command(words.next().expect("a program"), None);
    let is_added = add.args(words).output().expect("iproute2 is installed").status.success();
    if !is_added {
        // Addresses are the same each time.
        skip(&format!("this kernel cannot: {line}"));
    }
    is_added
}

#[test]
fn streams_that_are_forwarded_arrive_right() {
    for kind in &KINDS {
        let Some(net) = Net::new(kind) else { continue };
        let _server = serve(net.server(), None, "tcp-serve --mode echo --bind [::]:9000");
        let mut corrupted = 0;
        for &place in kind.places {
            let (host, line) = net.at(place);
            // Below the tunnel, everything is of the protocol of the tunnel.
            let only = if matches!(place, Place::Cable(_)) { "" } else { "--protocol tcp" };
            let injector = Injector::start(host, &format!("{line} --corrupt 5% {only}"));
            for &family in kind.families {
                let to = SocketAddr::new(inside(family, 2), 9000);
                let report = talk(
                    net.client(),
                    None,
                    &format!(
                        "tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 20000"
                    ),
                );
                let what = format!("{} {line} {family:?}", kind.name);
                assert_eq!(report["error"], Value::Null, "{what}: {report}");
                let read = &report["read"];
                assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0), "{what}");
            }
            let total = injector.stop().total;
            assert!(total.matched > 0 && total.skipped == 0, "{} {line}: {total:?}", kind.name);
            corrupted += total.corrupted;
        }
        // There are too few packets to expect one at each place.
        assert!(corrupted > 0, "{}", kind.name);
        println!("{}: {corrupted} packets corrupted, no wrong byte", kind.name);
    }
}

#[test]
fn echo_requests_of_the_end_itself_are_not_answered() {
    const PINGS: u32 = 20;
    for kind in &KINDS {
        let Some(net) = Net::new(kind) else { continue };
        for &family in kind.families {
            let ping = || net.router().ping(None, inside(family, 2), PINGS);
            assert_eq!(ping(), u64::from(PINGS), "{} {family:?} without a fault", kind.name);
            let (host, line) = net.at(kind.places[0]);
            // Within the tunnel, neither multicast listener reports nor neighbour discovery.
            let only = match kind.places[0] {
                Place::Cable(_) => String::new(),
                _ => format!("--remote {} --longer-than 80", inside(family, 2)),
            };
            let injector = Injector::start(host, &format!("{line} --corrupt 100% {only}"));
            assert_eq!(ping(), 0, "{} {family:?}", kind.name);
            let total = injector.stop().total;
            assert_eq!((total.corrupted, total.skipped), (u64::from(PINGS), 0), "{}", kind.name);
        }
    }
}
