//! Where packets wait that are delayed or limited in their rate: a device of ours in each network namespace.
//!
//! Packets are redirected to it with a tag, wait, come back and are put on their way again, so that no qdisc of
//! anybody else's is touched. There are two engines. `edt`: a veth pair, on one end of which `sch_fq` lets each packet
//! go at the time that it bears ("earliest departure time"). `tap`: a TAP, behind which a thread of ours holds the
//! packets, for kernels without `sch_fq`.

mod delay_queue;

use std::{
    fmt::{self, Display, Formatter},
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use injector_common::{
    hold::{Hold, TAGS},
    packet::Direction,
};
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;

use crate::{
    kernel::{
        KernelError, attach, clsact,
        device::{self, FAR, Identity, NEAR},
        fq::{self, Root},
        interface::Interface,
        link::Link,
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

/// How packets are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
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
    /// The one that was asked for, or the best one that works here.
    pub fn choose(asked: Option<Self>) -> Result<Self, NetworkError> {
        if asked == Some(Self::Tap) {
            return Ok(Self::Tap);
        }
        match (asked, fq::probe()) {
            (_, Ok(())) => Ok(Self::Edt),
            (Some(_), Err(error)) => Err(NetworkError::NoFq(error)),
            (None, Err(error)) => {
                tracing::debug!(%error, "no fq, so a TAP");
                Ok(Self::Tap)
            }
        }
    }
}

/// The first index of our devices; those of ordinary ones are counted from 1.
const FIRST_INDEX: u32 = 1_000_000_000;

/// File descriptors of TAPs have at least this number. The kernel closes a dying process's files in the order
/// of their numbers, and the programs that send packets to a TAP must go before it does.
const TAP_FD: i32 = 900;

/// For how long packets may still wait after the faults have ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// Settings of a loopback without which packets that come to it anew are refused: those that leave it the usual
/// way bring their route along.
const LOOPBACK_SETTINGS: [&str; 2] = ["ipv4/conf/lo/accept_local", "ipv4/conf/lo/route_localnet"];

/// What they are set to: the kernel takes any number but 0 for yes, and people write 1. So what others set meanwhile is
/// told from what we did, and stays.
const YES: &str = "2";

/// How many packets may wait in a queue of the kernel: those that come at line rate while the longest delay
/// lasts, as far as a quarter of the memory goes.
#[must_use]
pub fn room_for(holds: &[Hold]) -> u32 {
    /// 10 Gbit/s of full-sized frames.
    const PACKETS_A_SECOND: u64 = 820_000;
    /// What such a frame takes in memory.
    const BYTES: u64 = 2304;
    const LEAST: u64 = 10_000;

    let longest = holds.iter().map(|hold| {
        let delay = hold.delay.latency_ns + 4 * hold.delay.jitter_ns;
        if hold.rate.cost == 0 { delay } else { delay.saturating_add(2 * hold.rate.queue_ns) }
    });
    let seconds = longest.max().unwrap_or(0).div_ceil(1_000_000_000);
    let memory =
        <procfs::Meminfo as procfs::Current>::current().map_or(1 << 30, |info| info.mem_total);
    let packets = seconds.saturating_mul(PACKETS_A_SECOND).min(memory / 4 / BYTES).max(LEAST);
    u32::try_from(packets).unwrap_or(u32::MAX)
}

/// What became of held packets, all devices together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets dropped because more waited than fit.
    pub dropped: u64,
    /// Packets that wait now.
    pub held: u64,
}

/// The hold devices of one injector.
#[derive(Debug)]
pub struct Holds {
    engine: Engine,
    /// Tells our devices from those of other injectors.
    slot: u32,
    /// Most packets that wait in a queue of the kernel.
    limit: u32,
    devices: Vec<Device>,
    /// Namespaces whose device was taken away, and how often in a row it could not be made again.
    missing: Vec<(Netns, u32)>,
    /// Packets that devices dropped that are gone.
    dropped: u64,
    /// Settings that were changed, by namespace.
    settings: Vec<(Netns, u32)>,
    /// Interfaces and directions that have a tag: its number is the place.
    routes: Vec<(u32, Direction)>,
}

/// A hold device. Programs and TAP go when it is dropped; the journal removes a veth pair.
#[derive(Debug)]
struct Device {
    netns: Netns,
    near: Identity,
    /// The other end of a veth pair.
    far: Option<Identity>,
    /// The near end's qdisc as it was made.
    queue: Root,
    programs: Vec<Program>,
    holder: Holder,
}

/// A program on a hold device.
#[derive(Debug)]
enum Program {
    Link(Link),
    /// A filter, which goes with the device: its interface and direction.
    Filter(u32, Direction),
}

#[derive(Debug)]
enum Holder {
    Queue { action: u32 },
    Userspace(DelayQueue),
}

impl Holds {
    /// None yet.
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

    /// How packets are held.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// The index of the devices' near ends.
    #[must_use]
    pub const fn interface(&self) -> u32 {
        FIRST_INDEX + 2 * self.slot
    }

    /// Has packets of an interface be held; to be called before programs are attached to it.
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
            if tag >= TAGS {
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
                // The queue may be emptied by any processor, now by this one and now by that.
                if let Err(error) = rps::spread(netns, &far.name) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "order may not be kept"
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
                let tap = with_high_number(device::add_tap(netns, &near)?);
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

    /// Has a loopback take packets that have lost their route.
    fn open_loopback(
        &mut self,
        instance: &mut Instance,
        netns: &Netns,
    ) -> Result<(), NetworkError> {
        for setting in LOOPBACK_SETTINGS {
            let before = sysctl::get(netns, setting)?.map_err(NetworkError::Loopback)?;
            if !["0", YES].contains(&before.as_str()) {
                // It is as it must be, and others have it so.
                continue;
            }
            let change = change_of(netns.inode(), setting, before);
            let set = || sysctl::set(netns, setting, YES).map_err(io::Error::other)?;
            let action = instance.perform(change, set)?;
            self.settings.push((netns.clone(), action));
        }
        Ok(())
    }

    /// What became of the packets.
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

    /// Forgets the devices of namespaces that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&Netns) -> bool) {
        self.devices.retain(|device| is_there(&device.netns));
        self.missing.retain(|(netns, _)| is_there(netns));
    }

    /// Looks whether all devices are as they were made, and makes anew what others took away.
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
            let there = place.map(|place| &*place.hold_devices).unwrap_or_default();
            match device.condition(there, changed)? {
                Condition::Whole => self.devices.push(device),
                Condition::Down => {
                    // It may be gone by now, which the next look shows.
                    match device.start() {
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
                        tracing::debug!(?restored, "making a device again, to restore its queue");
                        self.discard(device, instance)?;
                    }
                },
                Condition::Broken => self.discard(device, instance)?,
            }
            lease.renew(object)?;
        }
        for (netns, failures) in std::mem::take(&mut self.missing) {
            match self.add(object, instance, &netns, lease) {
                Ok(device) => {
                    notices.add(Interference::DeviceRemoved, device.title());
                    self.devices.push(device);
                }
                Err(error) if failures + 1 < ATTEMPTS => {
                    tracing::debug!(%error, "cannot make a device again yet");
                    self.missing.push((netns, failures + 1));
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

    /// Removes what is left of a device, so that it is made again.
    fn discard(&mut self, device: Device, instance: &mut Instance) -> Result<(), NetworkError> {
        self.missing.push((device.netns, 0));
        match device.holder {
            Holder::Queue { action } => instance.undo(action)?,
            Holder::Userspace(queue) => self.dropped += queue.end().dropped.load(Relaxed),
        }
        Ok(())
    }

    /// Waits until no packet waits any more, but not for longer than [`PATIENCE`]; a TAP's need not wait. Returns
    /// what became of them.
    fn drain(&self) -> Result<Statistics, NetworkError> {
        let end = Instant::now() + PATIENCE;
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

    /// Removes all devices, after everything that sends packets to them has been detached. Returns what became of
    /// the packets: those that are held still are lost.
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

/// What a look shows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Whole,
    /// It is there, but set down.
    Down,
    /// The settings of its qdisc were changed.
    Changed,
    /// It is of no use.
    Broken,
}

impl Device {
    /// What it is like, by the hold devices of its namespace.
    fn condition(&self, there: &[Interface], changed: &Changed) -> Result<Condition, NetworkError> {
        let mut is_up = true;
        for end in [Some(&self.near), self.far.as_ref()].into_iter().flatten() {
            let found = there.iter().find(|interface| interface.index == end.index);
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
        // The kernel tells of a change of settings.
        let is_changed =
            changed.any(&self.netns) && Root::of(&self.netns, self.near.index)? != self.queue;
        Ok(if is_changed { Condition::Changed } else { Condition::Whole })
    }

    /// Gives its queue the settings again that it was made with; returns whether it has them.
    fn restore_queue(&self) -> Result<bool, KernelError> {
        self.queue.restore(&self.netns, self.near.index)?;
        Ok(Root::of(&self.netns, self.near.index)? == self.queue)
    }

    /// Sets it up again.
    fn start(&self) -> Result<(), KernelError> {
        match &self.far {
            Some(far) => device::start_veth(&self.netns, &self.near, far),
            None => device::start_tap(&self.netns, &self.near),
        }
    }

    /// What it is called, for people.
    fn title(&self) -> String {
        title(&self.netns, &self.near.name)
    }
}

/// The change of a setting to [`YES`], as another injector has announced it if one has.
fn change_of(netns: u64, name: &str, before: String) -> Action {
    let is_same = |action: &Action| {
        matches!(action, Action::SetSysctl { netns: there, name: other, .. }
            if *there == netns && other == name)
    };
    journal::announced().find(is_same).unwrap_or_else(|| Action::SetSysctl {
        netns,
        name: name.into(),
        before,
        after: YES.into(),
    })
}

/// The same file under a high number, if there is room.
fn with_high_number(file: File) -> File {
    match fcntl(file.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(TAP_FD)) {
        // SAFETY: just made, and nobody else's.
        Ok(number) => unsafe { File::from_raw_fd(number) },
        Err(error) => {
            tracing::debug!(%error, fd = file.as_raw_fd(), "the TAP keeps its number");
            file
        }
    }
}
