//! Wire packets: devices of injector's that segment GSO packets, in each network namespace.
//!
//! TCP and UDP hand down pieces of up to 64 KiB, and GRO merges received packets. A fault that decides
//! per packet must see what is on the wire. So the eBPF programs redirect matching pieces to a macvlan
//! that does not take them whole: the kernel segments them, the program on the device below applies the
//! rule to each packet, and redirects it back to its path. All of that happens within the sender's call.

use crate::{
    kernel::{
        KernelError, attach, clsact,
        device::{self, CUT, CUT_PEER, Identity, WIRE, WireDevices},
        interface::Interface,
        link::Link,
        netns::Netns,
        object::{Object, WireDevice},
    },
    lifetime::{action::Action, instance::Instance},
    output,
    target::Place,
};
use injector_common::packet::Direction;

use super::{
    HookChoice, Lease, NetworkError,
    attachments::{ATTEMPTS, title},
    monitors::Changed,
    notices::{Interference, Notices},
};

/// The program that applies rules to segmented packets.
pub const PROGRAM: &str = "wire_egress";

/// The first interface index of these devices, above those of hold devices.
const FIRST_INDEX: u32 = 1_100_000_000;

/// The setting for the length of the backlog of a CPU.
const BACKLOG: &str = "/proc/sys/net/core/netdev_max_backlog";

/// The devices of one injector.
#[derive(Debug)]
pub struct Wire {
    /// Distinguishes the devices from those of other injectors.
    slot: u32,
    state: State,
    devices: Vec<Set>,
    /// Namespaces whose devices were removed, with the number of failed attempts to create them again.
    missing: Vec<(Netns, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No rule has required the devices yet.
    Unwanted,
    Wanted,
    /// The kernel lacks a kind of device, or the hook does not need them.
    Unavailable,
}

/// The devices in one namespace. The journal removes them.
#[derive(Debug)]
struct Set {
    netns: Netns,
    devices: WireDevices,
    /// The journaled action.
    action: u32,
    /// The attached program; `None` for a filter, which is removed with the device.
    program: Option<Link>,
}

/// The condition of the devices in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Whole,
    /// A device is set down.
    Down,
    /// The devices must be created again.
    Broken,
}

impl Wire {
    /// No devices yet. XDP sees packets before they are merged.
    #[must_use]
    pub const fn new(slot: u32, hook: HookChoice) -> Self {
        let state =
            if matches!(hook, HookChoice::Xdp) { State::Unavailable } else { State::Unwanted };
        Self { slot, state, devices: Vec::new(), missing: Vec::new() }
    }

    /// The index of the devices that segment packets.
    const fn index(&self) -> u32 {
        FIRST_INDEX + 4 * self.slot
    }

    /// The device for the eBPF programs.
    #[must_use]
    pub fn device(&self) -> WireDevice {
        /// The kernel's default for [`BACKLOG`], which only the initial namespace shows.
        const DEFAULT_BACKLOG: u32 = 1000;

        let limit = std::fs::read_to_string(BACKLOG).ok();
        let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_BACKLOG);
        // Other packets wait there too.
        WireDevice { interface: self.index(), backlog: limit / 2 }
    }

    /// Requires the devices. Returns whether they may have to be created.
    pub const fn want(&mut self) -> bool {
        if matches!(self.state, State::Unwanted) {
            self.state = State::Wanted;
            return true;
        }
        false
    }

    /// Whether rules require the devices.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.state == State::Wanted
    }

    /// Whether rules may redirect packets to the devices.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.state != State::Unavailable
    }

    /// Prepares segmenting packets of a namespace. Must be called before rules require it.
    pub fn serve(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        lease: &Lease,
    ) -> Result<(), NetworkError> {
        let is_served = self.devices.iter().any(|set| set.netns == *netns);
        if !self.is_wanted() || is_served {
            return Ok(());
        }
        match self.add(object, instance, netns, lease) {
            Ok(set) => self.devices.push(set),
            Err(Failed::Unsupported(reason)) => {
                self.state = State::Unavailable;
                tracing::warn!(
                    reason,
                    "this kernel has no macvlan or veth devices, which segment packets: faults act on GSO packets \
                     of up to 64 KiB as a whole"
                );
            }
            Err(Failed::Other(error)) => return Err(error),
        }
        Ok(())
    }

    fn add(
        &self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        lease: &Lease,
    ) -> Result<Set, Failed> {
        let (slot, index) = (self.slot, self.index());
        let address = Some(device::random_address());
        let identity = |prefix, offset, address| {
            let (name, index) = (format!("{prefix}{slot}"), index + offset);
            Identity { name, index, address }
        };
        let devices = WireDevices {
            upper: identity(WIRE, 0, None),
            lower: identity(CUT, 1, address),
            peer: identity(CUT_PEER, 2, None),
        };
        let lower = &devices.lower;
        let add = Action::AddDevice {
            netns: netns.inode(),
            name: lower.name.clone(),
            interface: lower.index,
            address,
        };
        let mut unsupported = None;
        let action = instance.perform(add, || {
            device::add_wire(netns, &devices).map_err(|error| {
                unsupported = device::is_unsupported(&error).then(|| output::chain(&error));
                std::io::Error::other(error)
            })
        });
        let action = action.map_err(|error| match unsupported {
            Some(reason) => Failed::Unsupported(reason),
            None => Failed::Other(error.into()),
        })?;
        let attached = lease
            .renew(object)
            .and_then(|()| Ok(attach::own(object, netns, lower, PROGRAM, Direction::Egress)?));
        match attached {
            Ok(program) => {
                // Until no program redirects packets to the device.
                let program = program.map(Link::closed_late);
                Ok(Set { netns: netns.clone(), devices, action, program })
            }
            Err(error) => {
                instance.undo(action).map_err(|error| Failed::Other(error.into()))?;
                Err(Failed::Other(error))
            }
        }
    }

    /// Removes the devices of namespaces in which the target no longer is.
    pub fn retain(
        &mut self,
        instance: &mut Instance,
        is_there: impl Fn(&Netns) -> bool,
    ) -> Result<(), NetworkError> {
        self.missing.retain(|(netns, _)| is_there(netns));
        for set in self.devices.extract_if(.., |set| !is_there(&set.netns)) {
            instance.undo(set.action)?;
        }
        Ok(())
    }

    /// Checks all devices and repairs those that another process changed.
    pub fn look(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        places: &[Place],
        changed: &Changed,
        notices: &mut Notices,
        lease: &Lease,
    ) -> Result<(), NetworkError> {
        for set in std::mem::take(&mut self.devices) {
            let place = places.iter().find(|place| place.netns == set.netns);
            let present = place.map(|place| &*place.own_devices).unwrap_or_default();
            match set.condition(present, changed)? {
                Condition::Whole => self.devices.push(set),
                Condition::Down => {
                    // On failure, a device may be gone: the next check shows that.
                    match device::start_wire(&set.netns, &set.devices) {
                        Ok(()) => notices.add(Interference::WireDown, set.title()),
                        Err(error) => tracing::debug!(%error, "cannot set a device up yet"),
                    }
                    self.devices.push(set);
                }
                Condition::Broken => {
                    // Until it exists again, rules would lose everything that they redirect to it.
                    instance.undo(set.action)?;
                    self.missing.push((set.netns, 0));
                }
            }
        }
        for (netns, failures) in std::mem::take(&mut self.missing) {
            match self.add(object, instance, &netns, lease) {
                Ok(set) => {
                    notices.add(Interference::WireRemoved, set.title());
                    self.devices.push(set);
                }
                Err(Failed::Other(error)) if failures + 1 < ATTEMPTS => {
                    tracing::debug!(%error, "cannot create a device again yet");
                    self.missing.push((netns, failures + 1));
                }
                Err(error) => {
                    let name = format!("{WIRE}{}", self.slot);
                    let what = format!("the device {}", title(&netns, &name));
                    let source = match error {
                        Failed::Other(error) => error,
                        Failed::Unsupported(reason) => NetworkError::NoWireDevices(reason),
                    };
                    return Err(NetworkError::TakenAway { what, source: source.into() });
                }
            }
        }
        Ok(())
    }

    /// Removes all devices, after all programs that redirect packets to them are detached.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), NetworkError> {
        for set in self.devices.drain(..) {
            instance.undo(set.action)?;
        }
        Ok(())
    }
}

/// Why devices cannot be created.
#[derive(Debug)]
enum Failed {
    /// The kernel lacks a kind of device, with its error.
    Unsupported(String),
    Other(NetworkError),
}

impl Set {
    /// The condition, given injectors' devices in its namespace.
    fn condition(
        &self,
        present: &[Interface],
        changed: &Changed,
    ) -> Result<Condition, NetworkError> {
        let mut is_up = true;
        for wanted in self.devices.all() {
            match present.iter().find(|interface| interface.index == wanted.index) {
                Some(found) if found.name == wanted.name => is_up &= found.is_up,
                _ => return Ok(Condition::Broken),
            }
        }
        let is_attached = match &self.program {
            Some(link) => link.is_attached().map_err(NetworkError::Look)?,
            None if changed.any(&self.netns) => self.has_filter()?,
            None => true,
        };
        Ok(match (is_attached, is_up) {
            (false, _) => Condition::Broken,
            (true, false) => Condition::Down,
            (true, true) => Condition::Whole,
        })
    }

    fn has_filter(&self) -> Result<bool, KernelError> {
        let hooks = [(self.devices.lower.index, Direction::Egress)];
        let found = clsact::filters(&self.netns, &hooks)?;
        let first = found.first().and_then(|filters| filters.first());
        Ok(first.is_some_and(|filter| filter.place == attach::OWN_PLACE))
    }

    /// A readable name.
    fn title(&self) -> String {
        title(&self.netns, &self.devices.upper.name)
    }
}
