//! What this kernel can do, found out by trying it in a scratch network namespace.

use std::collections::BTreeSet;

use injector_common::{
    control::{MAX_MASKS, ScopeKind},
    packet::Direction,
    rule::RULE_ALL,
};
use rtnetlink::{LinkUnspec, LinkVeth};
use serde::Serialize;

use super::{
    KernelError,
    attach::{self, Hook},
    clock_probe, clsact,
    device::{self, Identity, WireDevices},
    fq,
    interface::{self, Interface, block_on},
    layout::{self, Layout},
    link::Link,
    needs::Needs,
    netns::Netns,
    object::{Capacity, Constants, HoldDevice, Object, WireDevice},
    rps,
    tree::ProcessTree,
    vdso,
};
use crate::output;

/// The oldest supported version of Linux.
const LINUX: (u8, u8) = (6, 1);

/// What tcx requires.
const TCX: Needs = Needs { linux: (6, 6), options: &["CONFIG_NET_XGRESS"], ..Needs::NONE };

/// What clsact requires.
const CLSACT: Needs = Needs {
    linux: LINUX,
    options: &["CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_BPF"],
    modules: &["sch_ingress", "cls_bpf"],
    other: "",
};

/// What matching received packets by cgroup requires.
const BTF: Needs = Needs {
    linux: LINUX,
    options: &["CONFIG_DEBUG_INFO_BTF"],
    other: "--direction egress works without",
    ..Needs::NONE
};

/// What generic XDP requires.
const XDP_GENERIC: Needs = Needs { linux: LINUX, options: &["CONFIG_BPF_SYSCALL"], ..Needs::NONE };

/// What native XDP requires.
const XDP_NATIVE: Needs = Needs::other("a driver with native XDP; xdp-generic serves meanwhile");

/// What the EDT engine requires.
const EDT: Needs = Needs {
    linux: LINUX,
    options: &["CONFIG_NET_SCH_FQ"],
    modules: &["sch_fq"],
    other: "the tap engine serves meanwhile",
};

/// What the TAP engine requires.
const TAP: Needs =
    Needs { linux: LINUX, options: &["CONFIG_TUN"], modules: &["tun"], other: "/dev/net/tun" };

/// What segmenting GSO packets requires.
const WIRE: Needs = Needs {
    linux: LINUX,
    options: &["CONFIG_MACVLAN", "CONFIG_VETH"],
    modules: &["macvlan", "veth"],
    other: "faults act on GSO packets as a whole meanwhile",
};

/// A mechanism of the kernel's that packet faults take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A hook of tc.
    Hook,
    /// The hook of XDP.
    Xdp,
    /// A device that holds packets.
    Hold,
}

/// Tells which faults take a mechanism.
pub type Served = fn(Mechanism) -> Vec<&'static str>;

/// What was found about a hook or another means of the kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was tried.
    pub subject: &'static str,
    /// The faults that it serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<&'static str>,
    /// What it is for, in words.
    pub serves: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether something works.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It works.
    Ok,
    /// It does not.
    Unavailable {
        /// Why.
        reason: String,
        /// What would help, of which this kernel has nothing.
        #[serde(skip_serializing_if = "String::is_empty")]
        remedy: String,
    },
}

impl Verdict {
    /// Ok if the result is; else unavailable because of its error.
    pub fn of<T, E: std::error::Error>(result: Result<T, E>, needs: &Needs) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(error) => {
                Self::Unavailable { reason: output::chain(&error), remedy: needs.lacking() }
            }
        }
    }

    /// Whether it works.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok)
    }
}

/// Runs `work` in a network namespace that goes with this call, with its loopback up.
pub fn on_loopback<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
    Netns::scratch(|| {
        let lo = find(&Netns::current()?, |interface| interface.is_loopback)?;
        block_on(async |handle| {
            let change = LinkUnspec::new_with_index(lo.index).up().build();
            handle.link().set(change).execute().await.map_err(|source| KernelError::Request {
                what: "starting the loopback".into(),
                source: source.into(),
            })
        })?;
        Ok(work())
    })
}

/// Tries everything. Nothing outside a namespace that goes with this call is touched.
pub fn hooks(served: Served) -> Result<Vec<Finding>, KernelError> {
    let here = Netns::current()?;
    let mut findings = Netns::scratch(|| try_hooks(&Netns::current()?, served))?;
    findings.push(socket_tags());
    findings.push(steering(&here));
    Ok(findings)
}

/// Tries what tells the packets of single processes, for a set of none.
fn socket_tags() -> Finding {
    let tried = || {
        let tree = ProcessTree::load()?;
        let constants = Constants {
            scope: ScopeKind::Processes,
            mptcp: layout::has_mptcp(),
            owner_mark: 1,
            flags: RULE_ALL,
            ..Constants::default()
        };
        let capacity = Capacity { rules: 1, entries: 1, masks: 1, ..Capacity::default() };
        let mut object = Object::load_for(constants, capacity, 0, Some(&tree))?;
        object.tag_new_sockets()?;
        object.load_programs(&BTreeSet::from(["tc_egress", "tc_ingress"]))
    };
    Finding {
        subject: "socket tags",
        faults: Vec::new(),
        serves: "packets of single processes (--pid, --process), and of sockets that --unit was passed",
        verdict: Verdict::of(
            tried(),
            &Needs {
                linux: LINUX,
                options: &["CONFIG_CGROUP_BPF", "CONFIG_DEBUG_INFO_BTF"],
                other: "/proc of its own PID namespace",
                ..Needs::NONE
            },
        ),
    }
}

/// Tries what keeps packets of the EDT engine in order: in full on a device that goes, and as far as nothing is
/// changed where faults would be, as what works in one namespace need not work in the other.
fn steering(here: &Netns) -> Finding {
    let full = Netns::scratch(|| rps::spread(&Netns::current()?, "lo"));
    Finding {
        subject: "packet steering",
        faults: Vec::new(),
        serves: "the order of packets that the edt engine holds",
        verdict: Verdict::of(
            full.and_then(|()| rps::check(here)),
            &Needs::other(
                "mount /proc, and allow fsopen(2) and fsmount(2) (seccomp); the tap engine keeps the order without",
            ),
        ),
    }
}

fn try_hooks(netns: &Netns, served: Served) -> Result<Vec<Finding>, KernelError> {
    const XDP: &str = "--xdp: received packets of a host, namespace or interface";

    let mut object = Object::load(
        // So that the verifier sees the code that tells whose packet it is; any interface will do for that which holds
        // packets.
        Constants {
            scope: ScopeKind::Cgroup,
            owner_mark: 1,
            protect: true,
            hold: Some(HoldDevice { interface: 1, is_tap: false }),
            wire: WireDevice { interface: 1, backlog: 1 },
            flags: RULE_ALL,
            ..Constants::default()
        },
        Capacity { rules: 1, entries: 1, masks: MAX_MASKS as u32, holds: 1, ..Capacity::default() },
        0,
    )?;
    let lo = find(netns, |interface| interface.is_loopback)?;
    let tcx = |object: &mut Object, direction| attach::tcx(object, netns, &lo, direction);
    let egress = tcx(&mut object, Direction::Egress);
    let ingress = tcx(&mut object, Direction::Ingress);
    let clsact = clsact::add_qdisc(netns, &lo).map_err(KernelError::Thread).and_then(|()| {
        let program = object.classifier("tc_egress")?;
        let place = clsact::Place { priority: clsact::PRIORITY, handle: 1 };
        clsact::add_filter(program, netns, &lo, Direction::Egress, place)
    });
    let generic = attach::xdp_in(&mut object, netns, &lo, Hook::XdpGeneric);
    let native = native_xdp(&mut object, netns);
    let edt = edt(&mut object, netns, lo.index);
    let tap = tap(&mut object, netns);
    let wire = wire(&mut object, netns);
    Ok(vec![
        Finding {
            subject: "tcx egress",
            faults: served(Mechanism::Hook),
            serves: "sent packets",
            verdict: Verdict::of(egress, &TCX),
        },
        Finding {
            subject: "tcx ingress",
            faults: served(Mechanism::Hook),
            serves: "received packets",
            verdict: Verdict::of(ingress, &TCX),
        },
        Finding {
            subject: "clsact",
            faults: served(Mechanism::Hook),
            serves: "sent and received packets, where there is no tcx",
            verdict: Verdict::of(clsact, &CLSACT),
        },
        Finding {
            subject: "kernel BTF",
            faults: Vec::new(),
            serves: "received packets of a cgroup (run, --cgroup)",
            verdict: Verdict::of(Layout::of_kernel(), &BTF),
        },
        Finding {
            subject: "xdp-generic",
            faults: served(Mechanism::Xdp),
            serves: XDP,
            verdict: Verdict::of(generic, &XDP_GENERIC),
        },
        Finding {
            subject: "xdp-native (veth)",
            faults: served(Mechanism::Xdp),
            serves: XDP,
            verdict: Verdict::of(native, &XDP_NATIVE),
        },
        Finding {
            subject: "engine edt",
            faults: served(Mechanism::Hold),
            serves: "packets held back in the kernel, by sch_fq",
            verdict: Verdict::of(edt, &EDT),
        },
        Finding {
            subject: "engine tap",
            faults: served(Mechanism::Hold),
            serves: "packets held back in userspace, behind a TAP",
            verdict: Verdict::of(tap, &TAP),
        },
        Finding {
            subject: "wire packets",
            faults: Vec::new(),
            serves: "faults of single packets where the kernel hands down GSO packets of up to 64 KiB",
            verdict: Verdict::of(wire, &WIRE),
        },
    ])
}

/// Tries what faults the clocks of processes. Nothing is attached.
#[must_use]
pub fn clocks() -> [Finding; 2] {
    let probes = match clock_probe::refusal() {
        None => Verdict::Ok,
        Some(error) => Verdict::of(
            Err::<(), _>(error),
            &Needs {
                options: &["CONFIG_DEBUG_INFO_BTF", "CONFIG_KPROBE_EVENTS"],
                other: if clock_probe::is_locked_down() {
                    "no lockdown (no Secure Boot, or lockdown=none)"
                } else {
                    ""
                },
                ..Needs::NONE
            },
        ),
    };
    [
        Finding {
            subject: "engine vdso",
            faults: vec!["clock"],
            serves: "--clock and similar faults: time that programs read without a system call",
            verdict: Verdict::of(
                vdso::check(),
                &Needs::other("boot with proc_mem.force_override=always"),
            ),
        },
        Finding {
            subject: "engine probe",
            faults: vec!["clock"],
            serves: "--clock and similar faults: time that programs read by system calls, and absolute deadlines",
            verdict: probes,
        },
    ]
}

/// What the EDT engine takes, on an interface of a namespace that goes.
fn edt(object: &mut Object, netns: &Netns, interface: u32) -> Result<(), KernelError> {
    fq::add(netns, interface, 1)?;
    object.load_programs(&BTreeSet::from(["hold_egress", "hold_ingress"]))
}

/// What the TAP engine takes.
fn tap(object: &mut Object, netns: &Netns) -> Result<(), KernelError> {
    let identity = Identity { name: "injector2".into(), index: 1 << 30, address: None };
    let tap = device::add_tap(netns, &identity)?;
    let held = object.held_packets()?;
    object.load_programs(&BTreeSet::from(["hold_ingress"]))?;
    drop((tap, held));
    Ok(())
}

/// What segmenting GSO packets takes.
fn wire(object: &mut Object, netns: &Netns) -> Result<(), KernelError> {
    let identity = |number: u32| {
        let (name, index) = (format!("injector{number}"), (1 << 30) + number);
        Identity { name, index, address: None }
    };
    let devices = WireDevices { upper: identity(3), lower: identity(4), peer: identity(5) };
    device::add_wire(netns, &devices)?;
    object.load_programs(&BTreeSet::from(["wire_egress"]))
}

/// Native XDP on a veth pair that goes with the namespace.
fn native_xdp(object: &mut Object, netns: &Netns) -> Result<Link, KernelError> {
    const NAME: &str = "injector0";
    const PEER: &str = "injector1";

    block_on(async |handle| {
        let pair = LinkVeth::new(NAME, PEER).build();
        handle.link().add(pair).execute().await.map_err(|source| KernelError::Request {
            what: "making a veth pair".into(),
            source: source.into(),
        })
    })?;
    let veth = find(netns, |interface| interface.name == NAME)?;
    attach::xdp_in(object, netns, &veth, Hook::XdpNative)
}

fn find(netns: &Netns, is_it: impl Fn(&Interface) -> bool) -> Result<Interface, KernelError> {
    interface::list(netns)?.into_iter().find(|i| is_it(i)).ok_or(KernelError::Missing("interface"))
}
