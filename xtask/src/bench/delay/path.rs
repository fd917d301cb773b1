//! Packets held on ingress, by a router, by a bridge and by a container's host, compared with netem
//! at the sender.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    super::{
        injector::{Injector, Running},
        link::{Link, NEAR},
        namespace::Namespace,
        numbers::median,
        progress,
        target::Target,
    },
    contender::Contender,
    flow::Flows,
};

/// Delays in milliseconds.
const DELAYS: [u32; 2] = [20, 100];

/// The offered rate of a UDP flow, in bits a second.
const UDP_RATE: f64 = 50e6;

/// The rate that the application of a TCP flow offers, in bits a second, which emulated machines sustain.
const TCP_RATE: f64 = 100e6;

/// The minimum ratio of injector's throughput to netem's.
const MIN_RATIO: f64 = 0.9;

/// The interface of the middle host towards the near end.
const IN: &str = "in0";

/// The interface of the middle host towards the far end.
const OUT: &str = "out0";

/// Two ends and a middle host.
struct Path {
    link: Link,
    middle: Namespace,
}

/// The place at which packets to the far end are held.
struct Place {
    what: &'static str,
    by_bridge: bool,
    host: fn(&Path) -> &Namespace,
    interface: &'static str,
    direction: &'static str,
}

const PLACES: [Place; 7] = [
    Place {
        what: "received, local",
        by_bridge: false,
        host: |path| &path.link.far,
        interface: "far0",
        direction: "ingress",
    },
    Place {
        what: "sent, forwarded",
        by_bridge: false,
        host: |path| &path.middle,
        interface: OUT,
        direction: "egress",
    },
    Place {
        what: "received, forwarded",
        by_bridge: false,
        host: |path| &path.middle,
        interface: IN,
        direction: "ingress",
    },
    Place {
        what: "sent, bridged",
        by_bridge: true,
        host: |path| &path.middle,
        interface: OUT,
        direction: "egress",
    },
    Place {
        what: "received, bridged",
        by_bridge: true,
        host: |path| &path.middle,
        interface: IN,
        direction: "ingress",
    },
    // Like a container: a namespace on a bridge of its host.
    Place {
        what: "sent, container",
        by_bridge: true,
        host: |path| &path.link.near,
        interface: NEAR,
        direction: "egress",
    },
    Place {
        what: "received, container",
        by_bridge: true,
        host: |path| &path.link.far,
        interface: "far0",
        direction: "ingress",
    },
];

impl Path {
    fn new(by_bridge: bool) -> Result<Self> {
        let (near, middle, far) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        let path = middle.path();
        let path = path.to_string_lossy();
        let far_address = if by_bridge { "192.0.2.2/29" } else { "192.0.2.10/29" };
        for (end, interface, port, address) in
            [(&near, NEAR, IN, "192.0.2.1/29"), (&far, "far0", OUT, far_address)]
        {
            end.ip([
                "link", "add", interface, "type", "veth", "peer", "name", port, "netns", &path,
            ])?;
            end.ip(["address", "add", address, "dev", interface])?;
            end.ip(["link", "set", interface, "up"])?;
            middle.ip(["link", "set", port, "up"])?;
        }
        let next = if by_bridge {
            middle.ip(["link", "add", "br0", "type", "bridge"])?;
            middle.ip(["link", "set", "br0", "up"])?;
            middle.ip(["link", "set", IN, "master", "br0"])?;
            middle.ip(["link", "set", OUT, "master", "br0"])?;
            "192.0.2.2"
        } else {
            middle.ip(["address", "add", "192.0.2.3/29", "dev", IN])?;
            middle.ip(["address", "add", "192.0.2.11/29", "dev", OUT])?;
            middle.ip(["route", "add", "10.64.0.0/16", "via", "192.0.2.10"])?;
            far.ip(["route", "add", "default", "via", "192.0.2.11"])?;
            let forward = "/proc/sys/net/ipv4/ip_forward";
            middle.run(|| std::fs::write(forward, "1").context(forward))?;
            "192.0.2.3"
        };
        near.ip(["route", "add", "10.64.0.0/16", "via", next])?;
        far.ip(["route", "add", "local", "10.64.0.0/16", "dev", "lo"])?;
        Ok(Self { link: Link { near, far }, middle })
    }
}

/// The values of one contender, one per round.
#[derive(Default)]
struct Figures {
    tcp: Vec<f64>,
    /// TCP at [`TCP_RATE`].
    steady: Vec<f64>,
    udp: Vec<f64>,
}

impl Figures {
    fn add(&mut self, flows: &Flows, time: Duration, ms: u32) -> Result<()> {
        self.tcp.push(flows.tcp(time, None)?.rate);
        self.steady.push(flows.tcp(time, Some(TCP_RATE))?.rate);
        let delay = Duration::from_millis(ms.into());
        self.udp.push(flows.steady_udp(UDP_RATE, Duration::from_secs(1), delay)?);
        Ok(())
    }
}

/// Measures all places with each available engine, compared with netem or else with the bare path.
pub fn measure(quick: bool, injector: &Injector, targets: &mut Vec<Target>) -> Result<()> {
    let (rounds, time) =
        if quick { (1, Duration::from_secs(1)) } else { (3, Duration::from_secs(2)) };
    println!(
        "\n| delay | held | | TCP Mbit/s | to netem | of 100 | to netem | UDP Mbit/s of 50 | to netem |"
    );
    println!("|--:|---|---|--:|--:|--:|--:|--:|--:|");
    for by_bridge in [false, true] {
        let path = Path::new(by_bridge)?;
        let flows = Flows::new(&path.link)?;
        let here = Contender::here(&path.link)?;
        let has_netem = here.contains(&Contender::Netem);
        for ms in DELAYS {
            let mut netem = Figures::default();
            progress(&format!("{ms} ms at the sender"));
            for _ in 0..rounds {
                let start = || Contender::Netem.start(&path.link, injector, ms);
                let active = has_netem.then(start).transpose()?;
                netem.add(&flows, time, ms)?;
                drop(active);
            }
            let kind = if by_bridge { "bridged" } else { "forwarded" };
            let who = if has_netem { "netem" } else { "no delay" };
            let (tcp, steady, udp) =
                (median(&netem.tcp), median(&netem.steady), median(&netem.udp));
            println!(
                "| {ms} | sent, {kind} | {who} | {:.0} | 1.00 | {:.1} | 1.00 | {:.1} | 1.00 |",
                tcp / 1e6,
                steady / 1e6,
                udp / 1e6
            );
            for place in PLACES.iter().filter(|place| place.by_bridge == by_bridge) {
                for engine in [Contender::Edt, Contender::Tap] {
                    if !here.contains(&engine) {
                        continue;
                    }
                    progress(&format!("{ms} ms, {}, {engine}", place.what));
                    let mut figures = Figures::default();
                    for _ in 0..rounds {
                        let running = place.hold(&path, injector, engine, ms)?;
                        figures.add(&flows, time, ms)?;
                        running.stop()?;
                    }
                    let ours_tcp = median(&figures.tcp);
                    let (ours_steady, ours_udp) = (median(&figures.steady), median(&figures.udp));
                    println!(
                        "| {ms} | {} | {engine} | {:.0} | {:.2} | {:.1} | {:.2} | {:.1} | {:.2} |",
                        place.what,
                        ours_tcp / 1e6,
                        ours_tcp / tcp,
                        ours_steady / 1e6,
                        ours_steady / steady,
                        ours_udp / 1e6,
                        ours_udp / udp
                    );
                    let mut add = |what: &str, measured| {
                        let name = format!("{what}, {}, {engine} to {who} at {ms} ms", place.what);
                        targets.push(Target { name, is_minimum: true, limit: MIN_RATIO, measured });
                    };
                    add("UDP", ours_udp / udp);
                    add("TCP of 100 Mbit/s", ours_steady / steady);
                    // Emulated machines are too slow for the thread of the TAP engine.
                    if has_netem && engine == Contender::Edt {
                        add("TCP", ours_tcp / tcp);
                    }
                }
            }
        }
    }
    Ok(())
}

impl Place {
    /// Holds packets there.
    fn hold(
        &self,
        path: &Path,
        injector: &Injector,
        engine: Contender,
        ms: u32,
    ) -> Result<Running> {
        let engine = if engine == Contender::Edt { "edt" } else { "tap" };
        let mut command = injector.command((self.host)(path))?;
        command.args([
            "inject",
            "--no-protect",
            "--for",
            "forever",
            "--output",
            "json",
            "--engine",
            engine,
        ]);
        command.args(["--interface", self.interface, "--direction", self.direction]);
        command.args(["--delay", &format!("{ms}ms")]);
        Running::start(command)
    }
}
