//! Hold devices: hold delayed and rate-limited packets, one device in each network namespace.
//!
//! Packets are redirected to the device with a tag, wait, come back and continue on their path, so that
//! existing qdiscs stay untouched. There are two engines. `edt`: a veth pair, on one end of which
//! `sch_fq` releases each packet at its timestamp ("earliest departure time"). `tap`: a TAP, read by a
//! thread that holds the packets, for kernels without `sch_fq`.

mod delay_queue;

use std::{
    fmt::{self, Display, Formatter},
    fs::File,
    io,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use injector_common::{
    hold::{Hold, ROUTES},
    model::delay::MAX_NS,
    packet::Direction,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    kernel::{
        KernelError, attach, clsact,
        device::{self, FAR, Identity, NEAR},
        fq::{self, Root},
        interface::Interface,
        link::{self, Link},
        netns::Netns,
        object::Object,
        rps, sysctl,
    },
    lifetime::{action::Action, instance::Instance, journal},
    target::Place,
};
use delay_queue::DelayQueue;

use super::{
    Lease, NetworkError,
    attachments::{ATTEMPTS, title},
    monitors::Changed,
    notices::{Interference, Notices},
};

/// The engine that holds packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DelayEngine")]
pub enum Engine {
    /// In the kernel, by `sch_fq`: exact, and cheap
    Edt,
    /// In userspace, behind a TAP device: for kernels without `sch_fq`
    Tap,
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Edt => "edt",
            Self::Tap => "tap",
        })
    }
}

impl Engine {
    /// The requested engine, or else the best one available.
    pub fn choose(requested: Option<Self>) -> Result<Self, NetworkError> {
        if requested == Some(Self::Tap) {
            return Ok(Self::Tap);
        }
        match (requested, fq::probe()) {
            (_, Ok(())) => Ok(Self::Edt),
            (Some(_), Err(error)) => Err(NetworkError::NoFq(error)),
            (None, Err(error)) => {
                tracing::debug!(%error, "fq is not available: using a TAP");
                Ok(Self::Tap)
            }
        }
    }
}

/// The first interface index of hold devices. The kernel numbers other devices from 1.
const FIRST_INDEX: u32 = 1_000_000_000;

/// How long to wait for held packets after the faults have ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of the loopback for accepting packets that come back to it. They have lost the route that
/// packets on the usual path carry along.
const LOOPBACK_SETTINGS: [&str; 2] = ["ipv4/conf/lo/accept_local", "ipv4/conf/lo/route_localnet"];

/// The value for these settings. The kernel takes any number but 0 as true, and people write 1, so this
/// distinguishes injector's changes from others', which stay.
const ENABLED: &str = "2";

/// The capacity of a kernel queue in packets: enough for line rate over the longest delay, but at
/// most a quarter of the memory.
#[must_use]
pub fn room_for(holds: &[Hold], is_traced: bool) -> u32 {
    /// 10 Gbit/s of full-sized frames.
    const PACKETS_PER_SECOND: u64 = 820_000;
    /// The memory of such a frame.
    const BYTES_PER_PACKET: u64 = 2304;
    const MIN_PACKETS: u64 = 10_000;

    let longest = holds.iter().map(|hold| {
        let delay = hold.delay.latency_ns + 4 * hold.delay.jitter_ns;
        if hold.rate.cost == 0 { delay } else { delay.saturating_add(2 * hold.rate.queue_ns) }
    });
    // The queue of a trace is limited in bytes, and its delay is not known here.
    let traced = is_traced.then_some(MAX_NS);
    let seconds = longest.chain(traced).max().unwrap_or(0).div_ceil(1_000_000_000);
    let memory =
        <procfs::Meminfo as procfs::Current>::current().map_or(1 << 30, |info| info.mem_total);
    let packets = seconds
        .saturating_mul(PACKETS_PER_SECOND)
        .min(memory / 4 / BYTES_PER_PACKET)
        .max(MIN_PACKETS);
    u32::try_from(packets).unwrap_or(u32::MAX)
}

/// Statistics of held packets of all devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets dropped because the queue was full.
    pub dropped: u64,
    /// Packets held now.
    pub held: u64,
}

/// The hold devices of one injector.
#[derive(Debug)]
pub struct Holds {
    engine: Engine,
    /// Distinguishes the devices from those of other injectors.
    slot: u32,
    /// The capacity of a kernel queue in packets.
    limit: u32,
    devices: Vec<Device>,
    missing: Vec<Missing>,
    /// Packets dropped by removed devices.
    dropped: u64,
    /// Journaled actions of changed settings, by namespace.
    settings: Vec<(Netns, u32)>,
    /// Interfaces and directions; the index is the tag.
    routes: Vec<(u32, Direction)>,
}

/// A hold device. Dropping it removes programs and TAP; the journal removes a veth pair.
#[derive(Debug)]
struct Device {
    netns: Netns,
    near: Identity,
    /// The other end of a veth pair.
    far: Option<Identity>,
    /// The original qdisc of the near end.
    queue: Root,
    programs: Vec<Program>,
    holder: Holder,
}

/// A namespace whose device was removed.
#[derive(Debug)]
struct Missing {
    netns: Netns,
    /// The original qdisc of the near end. That of the next device may be changed before it is read.
    queue: Root,
    /// Failed attempts to create the device again.
    failures: u32,
}

/// A program on a hold device.
#[derive(Debug)]
enum Program {
    Link(Link),
    /// A filter, which is removed with the device: its interface and direction.
    Filter(u32, Direction),
}

#[derive(Debug)]
enum Holder {
    Queue { action: u32 },
    Userspace(DelayQueue),
}

impl Holds {
    /// No devices yet.
    #[must_use]
    pub const fn new(engine: Engine, slot: u32, limit: u32) -> Self {
        Self {
            engine,
            slot,
            limit,
            devices: Vec::new(),
            missing: Vec::new(),
            dropped: 0,
            settings: Vec::new(),
            routes: Vec::new(),
        }
    }

    /// The engine that holds packets.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// The index of the devices' near ends.
    #[must_use]
    pub const fn interface(&self) -> u32 {
        FIRST_INDEX + 2 * self.slot
    }

    /// Prepares holding packets of an interface. Must be called before attaching programs to it.
    pub fn serve(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        interface: &Interface,
        direction: Direction,
        lease: &Lease,
    ) -> Result<(), NetworkError> {
        if !self.devices.iter().any(|device| device.netns == *netns) {
            let device = self.add(object, instance, netns, lease)?;
            self.devices.push(device);
        }
        if interface.is_loopback && !self.settings.iter().any(|(changed, _)| changed == netns) {
            self.open_loopback(instance, netns)?;
        }
        let route = (interface.index, direction);
        if self.engine == Engine::Edt && !self.routes.contains(&route) {
            let tag = self.routes.len() as u32;
            if tag >= ROUTES {
                return Err(NetworkError::TooManyInterfaces);
            }
            object.set_route(tag, interface.index, direction)?;
            self.routes.push(route);
        }
        Ok(())
    }

    fn add(
        &self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        lease: &Lease,
    ) -> Result<Device, NetworkError> {
        let slot = self.slot;
        let index = self.interface();
        let address = Some(device::random_address());
        let near = Identity { name: format!("{NEAR}{slot}"), index, address };
        let mut attach = |device: &Identity, program, direction| {
            lease.renew(object)?;
            let link = attach::own(object, netns, device, program, direction)?;
            Ok::<_, NetworkError>(match link {
                Some(link) => Program::Link(link),
                None => Program::Filter(device.index, direction),
            })
        };
        match self.engine {
            Engine::Edt => {
                let far =
                    Identity { name: format!("{FAR}{slot}"), index: index + 1, address: None };
                let add = Action::AddDevice {
                    netns: netns.inode(),
                    name: near.name.clone(),
                    interface: near.index,
                    address,
                };
                let action = instance.perform(add, || {
                    device::add_veth(netns, &near, &far)
                        .and_then(|()| fq::add(netns, near.index, self.limit))
                        .map_err(io::Error::other)
                })?;
                // Any CPU may dequeue packets, so steer each flow to one CPU.
                if let Err(error) = rps::spread(netns, &far.name) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "packets may be reordered"
                    );
                }
                let queue = Root::of(netns, near.index)?;
                let programs = vec![
                    attach(&near, "hold_egress", Direction::Egress)?,
                    attach(&far, "hold_ingress", Direction::Ingress)?,
                ];
                let holder = Holder::Queue { action };
                Ok(Device { netns: netns.clone(), near, far: Some(far), queue, programs, holder })
            }
            Engine::Tap => {
                let tap = File::from(link::closed_late(device::add_tap(netns, &near)?.into()));
                let queue = Root::of(netns, near.index)?;
                let programs = vec![attach(&near, "hold_ingress", Direction::Ingress)?];
                let (held, routes) = object.held_packets()?;
                let delay_queue =
                    DelayQueue::start(tap, held, routes).map_err(KernelError::Thread)?;
                let holder = Holder::Userspace(delay_queue);
                Ok(Device { netns: netns.clone(), near, far: None, queue, programs, holder })
            }
        }
    }

    /// Makes a loopback accept packets that have lost their route.
    fn open_loopback(
        &mut self,
        instance: &mut Instance,
        netns: &Netns,
    ) -> Result<(), NetworkError> {
        for setting in LOOPBACK_SETTINGS {
            let before = sysctl::get(netns, setting)?.map_err(NetworkError::Loopback)?;
            if !["0", ENABLED].contains(&before.as_str()) {
                // Already enabled by someone else.
                continue;
            }
            let change = change_of(netns.inode(), setting, before);
            let set = || sysctl::set(netns, setting, ENABLED).map_err(io::Error::other)?;
            let action = instance.perform(change, set)?;
            self.settings.push((netns.clone(), action));
        }
        Ok(())
    }

    /// The statistics of held packets.
    pub fn statistics(&self) -> Result<Statistics, NetworkError> {
        let mut sum = Statistics { dropped: self.dropped, held: 0 };
        for device in &self.devices {
            let (dropped, held) = match &device.holder {
                Holder::Queue { .. } => {
                    let queue = fq::statistics(&device.netns, device.near.index)?;
                    (queue.dropped, queue.held)
                }
                Holder::Userspace(queue) => {
                    let counts = queue.counts();
                    (counts.dropped.load(Relaxed), counts.held.load(Relaxed))
                }
            };
            sum.dropped += dropped;
            sum.held += held;
        }
        Ok(sum)
    }

    /// Removes the devices of namespaces in which the target no longer is.
    pub fn retain(
        &mut self,
        instance: &mut Instance,
        is_there: impl Fn(&Netns) -> bool,
    ) -> Result<(), NetworkError> {
        self.missing.retain(|missing| is_there(&missing.netns));
        for device in self.devices.extract_if(.., |device| !is_there(&device.netns)) {
            if let Holder::Queue { action } = device.holder {
                instance.undo(action)?;
            }
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
        let devices = std::mem::take(&mut self.devices);
        for device in devices {
            let place = places.iter().find(|place| place.netns == device.netns);
            let own_devices = place.map(|place| &*place.own_devices).unwrap_or_default();
            match device.condition(own_devices, changed)? {
                Condition::Whole => self.devices.push(device),
                Condition::Down => {
                    // On failure, the device may be gone: the next check shows that.
                    match device.start(own_devices) {
                        Ok(()) => notices.add(Interference::DeviceDown, device.title()),
                        Err(error) => tracing::debug!(%error, "cannot set a device up yet"),
                    }
                    self.devices.push(device);
                }
                Condition::Changed => match device.restore_queue() {
                    Ok(true) => {
                        notices.add(Interference::QueueChanged, device.title());
                        self.devices.push(device);
                    }
                    restored => {
                        tracing::debug!(?restored, "creating a device again to restore its queue");
                        self.discard(device, instance)?;
                    }
                },
                Condition::Broken => self.discard(device, instance)?,
            }
            lease.renew(object)?;
        }
        for Missing { netns, queue, failures } in std::mem::take(&mut self.missing) {
            match self.add(object, instance, &netns, lease) {
                Ok(device) => {
                    notices.add(Interference::DeviceRemoved, device.title());
                    self.devices.push(Device { queue, ..device });
                }
                Err(error) if failures + 1 < ATTEMPTS => {
                    tracing::debug!(%error, "cannot create a device again yet");
                    self.missing.push(Missing { netns, queue, failures: failures + 1 });
                }
                Err(error) => {
                    let name = format!("{NEAR}{}", self.slot);
                    let what = format!("the hold device {}", title(&netns, &name));
                    return Err(NetworkError::TakenAway { what, source: error.into() });
                }
            }
        }
        Ok(())
    }

    /// Removes the rest of a device, so that it is created again.
    fn discard(&mut self, device: Device, instance: &mut Instance) -> Result<(), NetworkError> {
        self.missing.push(Missing { netns: device.netns, queue: device.queue, failures: 0 });
        match device.holder {
            Holder::Queue { action } => instance.undo(action)?,
            Holder::Userspace(queue) => self.dropped += queue.end().dropped.load(Relaxed),
        }
        Ok(())
    }

    /// Waits until no packet is held, for at most [`DRAIN_TIMEOUT`]. A TAP's delay queue releases its
    /// packets by itself. Returns the statistics.
    fn drain(&self) -> Result<Statistics, NetworkError> {
        let end = Instant::now() + DRAIN_TIMEOUT;
        loop {
            let statistics = self.statistics()?;
            if self.engine == Engine::Tap {
                return Ok(Statistics { held: 0, ..statistics });
            }
            if statistics.held == 0 || Instant::now() > end {
                return Ok(statistics);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Removes all devices, after all programs that redirect packets to them are detached. Returns the
    /// statistics; packets still held are lost.
    pub fn end(&mut self, instance: &mut Instance) -> Result<Statistics, NetworkError> {
        let statistics = self.drain()?;
        self.clear(instance)?;
        Ok(statistics)
    }

    fn clear(&mut self, instance: &mut Instance) -> Result<(), NetworkError> {
        for device in self.devices.drain(..) {
            if let Holder::Queue { action } = device.holder {
                instance.undo(action)?;
            }
        }
        for (_, action) in self.settings.drain(..) {
            instance.undo(action)?;
        }
        Ok(())
    }
}

/// The condition of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Whole,
    /// The device is set down.
    Down,
    /// The settings of its qdisc were changed.
    Changed,
    /// The device must be created again.
    Broken,
}

impl Device {
    /// The condition, given injectors' devices in its namespace.
    fn condition(
        &self,
        own_devices: &[Interface],
        changed: &Changed,
    ) -> Result<Condition, NetworkError> {
        let mut is_up = true;
        for end in [Some(&self.near), self.far.as_ref()].into_iter().flatten() {
            let found = own_devices.iter().find(|interface| interface.index == end.index);
            match found {
                Some(found) if found.name == end.name => is_up &= found.is_up,
                _ => return Ok(Condition::Broken),
            }
            if end == &self.near
                && found.is_some_and(|found| !self.queue.is(found.qdisc.as_deref()))
            {
                return Ok(Condition::Broken);
            }
        }
        let mut filters = Vec::new();
        for program in &self.programs {
            match program {
                Program::Link(link) if link.is_attached().map_err(NetworkError::Look)? => {}
                Program::Link(_) => return Ok(Condition::Broken),
                Program::Filter(interface, direction) => filters.push((*interface, *direction)),
            }
        }
        if !filters.is_empty() && changed.any(&self.netns) {
            let found = clsact::filters(&self.netns, &filters)?;
            let is_ours = |filters: &Vec<clsact::Filter>| {
                filters.first().is_some_and(|filter| filter.place == attach::OWN_PLACE)
            };
            if !found.iter().all(is_ours) {
                return Ok(Condition::Broken);
            }
        }
        if !is_up {
            return Ok(Condition::Down);
        }
        // The kernel sends notifications about changes of qdiscs.
        let is_changed =
            changed.any(&self.netns) && Root::of(&self.netns, self.near.index)? != self.queue;
        Ok(if is_changed { Condition::Changed } else { Condition::Whole })
    }

    /// Restores the settings of its qdisc. Returns whether that succeeded.
    fn restore_queue(&self) -> Result<bool, KernelError> {
        self.queue.restore(&self.netns, self.near.index)?;
        Ok(Root::of(&self.netns, self.near.index)? == self.queue)
    }

    /// Sets the ends up that are down. Others stay untouched, because another process may be changing
    /// them now, which the next check reports.
    fn start(&self, own_devices: &[Interface]) -> Result<(), KernelError> {
        let Some(far) = &self.far else { return device::start_tap(&self.netns, &self.near) };
        let is_down = |end: &&&Identity| {
            own_devices.iter().any(|interface| interface.index == end.index && !interface.is_up)
        };
        let ends = [&self.near, far];
        ends.iter().filter(is_down).try_for_each(|end| device::start_veth(&self.netns, end))
    }

    /// A readable name.
    fn title(&self) -> String {
        title(&self.netns, &self.near.name)
    }
}

/// The action that sets a setting to [`ENABLED`]; the one that another injector announced, if any.
fn change_of(netns: u64, name: &str, before: String) -> Action {
    let is_same = |action: &Action| {
        matches!(action, Action::SetSysctl { netns: there, name: other, .. }
            if *there == netns && other == name)
    };
    journal::announced().find(is_same).unwrap_or_else(|| Action::SetSysctl {
        netns,
        name: name.into(),
        before,
        after: ENABLED.into(),
    })
}
