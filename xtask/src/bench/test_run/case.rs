//! The measured cases: a program, its rules and a packet.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use injector_common::{
    control::{Control, PROTECT_OPERATOR, ScopeKind},
    counter::RuleCounters,
    packet::{
        Direction::{self, Egress, Ingress},
        protocol::{TCP, UDP},
    },
};
use injector_user::{
    fault::network::compile::compile,
    kernel::{
        layout::Layout,
        object::{Capacity, Constants, Object, WireDevice},
    },
    spec::{Faults, file},
    target::peers::Addresses,
};

use testbed::bpf::{SCHED_CLS, XDP, load_empty, test_run};

use crate::bench::{
    frames,
    rules::{RuleFile, remote},
};

/// Verdicts (include/uapi/linux/bpf.h).
const TC_ACT_UNSPEC: u32 = u32::MAX;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// The local address of the packet, to which a socket is bound.
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 5201;

/// Name of a baseline.
pub const EMPTY_TC: &str = "tc, empty program: the measuring itself";
/// See above.
pub const EMPTY_XDP: &str = "XDP, empty program: the measuring itself";
/// Name of a case with a target.
pub const XDP_LOSS: &str = "XDP, loss 100 %";
/// See above.
pub const NO_MATCH: &str = "tc egress, no rule matches";
/// See above.
pub const MATCH: &str = "tc egress, match at 0 %";

/// One program with one set of rules and one packet.
pub struct Case {
    /// The name of the case.
    pub name: &'static str,
    /// The number of rules.
    pub rules: u32,
    /// Whether a rule must match.
    pub matches: bool,
    program: Program,
    hook: Hook,
    frame: Vec<u8>,
    /// A bound socket, for programs that look up the receiver.
    _receiver: Option<UdpSocket>,
}

/// The program.
enum Program {
    Ours(Box<Object>),
    Empty(OwnedFd),
}

/// The hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Tc(Direction),
    Xdp,
}

/// How a case differs from host scope and UDP.
#[derive(Clone, Copy, Default)]
struct Setting {
    cgroup: Option<(u64, u32)>,
    protect: bool,
    tcp: bool,
}

/// All cases. `own` is the ID and level of the packets' cgroup. Binds a socket in the calling thread's
/// namespace.
pub fn all(own: (u64, u32)) -> Result<Vec<Case>> {
    let host = Setting::default();
    let inside = Setting { cgroup: Some(own), ..host };
    // No cgroup has this ID.
    let outside = Setting { cgroup: Some((u64::MAX, own.1)), ..host };
    let protected = Setting { protect: true, tcp: true, ..host };
    let (egress, ingress) = (Hook::Tc(Egress), Hook::Tc(Ingress));

    let mut cases = vec![Case::empty(EMPTY_TC, egress)?, Case::empty(EMPTY_XDP, Hook::Xdp)?];
    for count in [1, 1000, 65_536] {
        let lossless = RuleFile::matching(count, "loss: 0%")?;
        let lossy = RuleFile::matching(count, "loss: 100%")?;
        let elsewhere = RuleFile::elsewhere(count, "loss: 0%")?;
        cases.push(Case::new(XDP_LOSS, Hook::Xdp, &lossy, true, host)?);
        cases.push(Case::new(NO_MATCH, egress, &elsewhere, false, host)?);
        cases.push(Case::new(MATCH, egress, &lossless, true, host)?);
        cases.push(Case::new("tc egress, not of the cgroup", egress, &lossless, false, outside)?);
    }
    let one = RuleFile::matching(1, "loss: 0%")?;
    let ports = RuleFile::matching(1, "loss: 0%, remote-port: 5000-6000, protocol: udp")?;
    cases.push(Case::new(
        "XDP, no rule matches",
        Hook::Xdp,
        &RuleFile::elsewhere(1, "loss: 0%")?,
        false,
        host,
    )?);
    cases.push(Case::new("tc egress, match of the cgroup", egress, &one, true, inside)?);
    cases.push(Case::new(
        "tc ingress, match of the cgroup (socket look-up)",
        ingress,
        &one,
        true,
        inside,
    )?);
    cases.push(Case::new("tc egress, TCP match with --protect", egress, &one, true, protected)?);
    let sometimes = RuleFile::matching(1, "loss: 0.0001%")?;
    cases.push(Case::new("tc egress, match at 0.0001 %", egress, &sometimes, true, host)?);
    cases.push(Case::new("tc egress, match with a port range", egress, &ports, true, host)?);
    cases.push(Case::new(
        "tc egress, 8 prefix lengths, no match",
        egress,
        &eight_masks()?,
        false,
        host,
    )?);
    Ok(cases)
}

/// Rules with different prefix lengths, each of which costs a lookup.
fn eight_masks() -> Result<RuleFile> {
    let mut rules = String::new();
    for prefix in 25..33 {
        writeln!(rules, "- {{remote: 198.18.0.0/{prefix}, loss: 0%}}")?;
    }
    RuleFile::new(8, &rules)
}

impl Case {
    fn new(
        name: &'static str,
        hook: Hook,
        file: &RuleFile,
        matches: bool,
        setting: Setting,
    ) -> Result<Self> {
        let (direction, protocol) = match hook {
            Hook::Tc(direction) => (direction, if setting.tcp { TCP } else { UDP }),
            Hook::Xdp => (Ingress, UDP),
        };
        let looks_up = setting.cgroup.is_some() && direction == Ingress;
        Ok(Self {
            name,
            rules: file.count,
            matches,
            program: Program::Ours(
                load(file, setting, looks_up).with_context(|| name.to_owned())?.into(),
            ),
            hook,
            frame: frames::ipv4(direction, protocol, LOCAL, remote(257), PORT),
            _receiver: looks_up.then(|| UdpSocket::bind((LOCAL, PORT))).transpose()?,
        })
    }

    /// An empty program.
    fn empty(name: &'static str, hook: Hook) -> Result<Self> {
        let program = match hook {
            Hook::Tc(_) => load_empty(SCHED_CLS, TC_ACT_UNSPEC.cast_signed())?,
            Hook::Xdp => load_empty(XDP, XDP_PASS.cast_signed())?,
        };
        Ok(Self {
            name,
            rules: 0,
            matches: false,
            program: Program::Empty(program),
            hook,
            frame: frames::ipv4(Egress, UDP, LOCAL, remote(257), PORT),
            _receiver: None,
        })
    }

    /// The time a packet in nanoseconds, over `repeat` packets.
    pub fn run(&mut self, repeat: u32) -> Result<f64> {
        let expected = match self.hook {
            Hook::Tc(_) => TC_ACT_UNSPEC,
            Hook::Xdp if self.matches => XDP_DROP,
            Hook::Xdp => XDP_PASS,
        };
        let program = match (&mut self.program, self.hook) {
            (&mut Program::Empty(ref program), _) => program.as_fd(),
            (Program::Ours(object), Hook::Tc(Egress)) => {
                object.classifier("tc_egress")?.fd()?.as_fd()
            }
            (Program::Ours(object), Hook::Tc(Ingress)) => {
                object.classifier("tc_ingress")?.fd()?.as_fd()
            }
            (Program::Ours(object), Hook::Xdp) => object.xdp("xdp_ingress")?.fd()?.as_fd(),
        };
        let outcome = test_run(program, &self.frame, repeat)?;
        ensure!(outcome.verdict == expected, "the program said {}", outcome.verdict.cast_signed());
        Ok(f64::from(outcome.ns))
    }

    /// The number of packets matched so far.
    pub fn matched(&mut self) -> Result<u64> {
        let Program::Ours(object) = &mut self.program else { return Ok(0) };
        let counters = object.rule_counters(0, self.rules)?;
        Ok(counters.iter().map(RuleCounters::matched).sum())
    }
}

/// Loads the object and activates the rules without an end.
fn load(file: &RuleFile, setting: Setting, looks_up: bool) -> Result<Object> {
    let Faults { seed, rules, .. } = file::read(&file.path())?;
    let compiled = compile(&rules, &Addresses::new(), seed.unwrap_or_default())?;
    let constants = Constants {
        scope: if setting.cgroup.is_some() { ScopeKind::Cgroup } else { ScopeKind::All },
        mptcp: false,
        layout: if looks_up { Layout::of_kernel()? } else { Layout::default() },
        // No mark.
        owner_mark: 0,
        protect: if setting.protect { PROTECT_OPERATOR } else { 0 },
        hold: None,
        wire: WireDevice::default(),
        flags: compiled.flags(),
    };
    // The same capacity as in `Network`.
    let capacity = Capacity {
        rules: compiled.rules.len() as u32,
        entries: 2 * compiled.entry_count() as u32,
        masks: 8,
        ..Capacity::default()
    };
    let mut object = Object::load(constants, capacity, 0)?;
    object.replace_entries(&[], &compiled.entries(0))?;
    if let Some([local, remote]) = &compiled.classes {
        object.set_port_classes(0, local, remote)?;
    }
    object.set_rules(0, &compiled.rules)?;
    object.set_rule_set(0, &compiled.set)?;
    let (cgroup_id, cgroup_level) = setting.cgroup.unwrap_or_default();
    let lease_deadline_ns = u64::MAX;
    object.set_control(Control { lease_deadline_ns, cgroup_id, cgroup_level, bank: 0 })?;
    Ok(object)
}
