//! The attachments of an injector's programs: created, monitored, repaired and removed.

use std::{collections::BTreeSet, time::Duration, time::Instant};

use aya::programs::ProgramError;
use injector_common::packet::Direction;

use super::{
    HookChoice, Lease, NetworkError,
    monitors::Changed,
    notices::{Interference, Notices},
};
use crate::{
    kernel::{
        KernelError,
        attach::{self, Hook},
        clsact::{self, Filter},
        interface::Interface,
        link::{self, Link},
        netns::Netns,
        object::Object,
    },
    lifetime::{LifetimeError, action::Action, instance::Instance, journal},
    target::Place,
};

/// The maximum number of consecutive attempts to repair something that another process removed,
/// which may still be making changes.
pub const ATTEMPTS: u32 = 4;

/// The minimum interval between moves of a filter ahead of others, which may do the same.
const MIN_OVERTAKE_INTERVAL: Duration = Duration::from_secs(5);

/// A program on an interface.
#[derive(Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// The namespace.
    pub netns: Netns,
    /// The direction of the packets.
    pub direction: Direction,
    /// The hook.
    pub hook: Hook,
    /// A link, which detaches when dropped, or a journaled action.
    owner: Owner,
    /// The number of consecutive failures to attach it again.
    failures: u32,
    /// The reported programs and filters that run before it.
    ahead: BTreeSet<String>,
    /// When it was last moved ahead of others.
    last_overtake: Option<Instant>,
}

#[derive(Debug)]
enum Owner {
    Link(Link),
    Filter {
        action: u32,
        place: clsact::Place,
        program: u32,
    },
    /// It was removed by another process.
    Detached,
}

/// The observed state of an attachment.
#[derive(Debug, Default)]
struct State {
    is_detached: bool,
    /// Foreign filters that run before it.
    filters_ahead: Vec<Filter>,
    /// The priority at which it would run first.
    best_priority: Option<u16>,
    /// The IDs of foreign programs that run before it.
    programs_ahead: Vec<u32>,
}

/// A clsact qdisc, removed after injector's last filter.
#[derive(Debug)]
struct Qdisc {
    netns: u64,
    interface: u32,
    action: u32,
    /// Whether the notification about the removal of the previous one is pending.
    is_second: bool,
}

/// All attachments. [`Self::clear`] removes them. Otherwise, links end when this is dropped, and
/// filters with the [`Instance`].
#[derive(Debug, Default)]
pub struct Attachments {
    all: Vec<Attachment>,
    qdiscs: Vec<Qdisc>,
    /// Whether a move of a filter ahead of others is pending.
    is_overtake_pending: bool,
    choice: HookChoice,
}

impl Attachments {
    /// No attachments yet.
    #[must_use]
    pub const fn new(choice: HookChoice) -> Self {
        Self { all: Vec::new(), qdiscs: Vec::new(), is_overtake_pending: false, choice }
    }

    /// Whether there are filters. The kernel sends notifications about them only.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        self.all.iter().any(|attachment| attachment.hook == Hook::Clsact)
    }

    /// All attachments.
    #[must_use]
    pub fn all(&self) -> &[Attachment] {
        &self.all
    }

    /// Whether a program is attached to this direction of this interface.
    #[must_use]
    pub fn contains(&self, netns: &Netns, interface: &Interface, direction: Direction) -> bool {
        self.all.iter().any(|attachment| {
            attachment.interface.index == interface.index
                && attachment.direction == direction
                && attachment.netns == *netns
        })
    }

    /// Attaches to one direction of an interface.
    pub fn add(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        interface: &Interface,
        direction: Direction,
    ) -> Result<&Attachment, NetworkError> {
        let (hook, owner) = self.attach(object, instance, netns, interface, direction)?;
        self.all.push(Attachment {
            interface: interface.clone(),
            netns: netns.clone(),
            direction,
            hook,
            owner,
            failures: 0,
            ahead: BTreeSet::new(),
            last_overtake: None,
        });
        Ok(&self.all[self.all.len() - 1])
    }

    fn attach(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        interface: &Interface,
        direction: Direction,
    ) -> Result<(Hook, Owner), NetworkError> {
        match self.choice {
            HookChoice::Xdp => {
                let (link, hook) = attach::xdp(object, netns, interface)?;
                Ok((hook, Owner::Link(link)))
            }
            HookChoice::Clsact => {
                let filter = self.filter(object, instance, netns, interface, direction)?;
                Ok((Hook::Clsact, filter))
            }
            HookChoice::Tcx => match attach::tcx(object, netns, interface, direction) {
                Ok(link) => Ok((Hook::Tcx, Owner::Link(link))),
                Err(error) if attach::is_unknown(&error) => {
                    tracing::debug!(%error, "tcx is not available: using clsact");
                    self.choice = HookChoice::Clsact;
                    let filter = self.filter(object, instance, netns, interface, direction)?;
                    Ok((Hook::Clsact, filter))
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Adds a filter, and a clsact qdisc if there is none, both journaled.
    fn filter(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        netns: &Netns,
        interface: &Interface,
        direction: Direction,
    ) -> Result<Owner, NetworkError> {
        let (inode, index, name) = (netns.inode(), interface.index, interface.name.clone());
        let add_qdisc = Action::AddClsact { netns: inode, interface: index, name };
        let work: Option<fn(&Netns, &Interface) -> std::io::Result<()>> =
            if !clsact::has_qdisc(netns, index)? {
                Some(clsact::add_qdisc)
            } else if !instance.has_done(&add_qdisc) && journal::is_announced(&add_qdisc) {
                // Created by another injector: the last one to end removes it.
                Some(|_, _| Ok(()))
            } else {
                None
            };
        if let Some(work) = work {
            let action = instance.perform(add_qdisc, || work(netns, interface))?;
            let is_same = |qdisc: &mut Qdisc| (qdisc.netns, qdisc.interface) == (inode, index);
            let mut is_second = false;
            for before in self.qdiscs.extract_if(.., is_same) {
                is_second = true;
                instance.was_undone(before.action)?;
            }
            self.qdiscs.push(Qdisc { netns: inode, interface: index, action, is_second });
        }
        let hooks = [(index, direction)];
        let filters = clsact::filters(netns, &hooks)?.pop().unwrap_or_default();
        let priority = clsact::priority(&filters);
        add_filter(object, instance, netns, interface, direction, priority)
    }

    /// Checks all attachments and repairs those that another process changed.
    pub fn look(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        changed: &Changed,
        notices: &mut Notices,
        lease: &Lease,
    ) -> Result<(), NetworkError> {
        self.forget_qdiscs(instance, changed)?;
        let states = self.observe(changed)?;
        self.is_overtake_pending = false;
        for (number, state) in states.into_iter().enumerate() {
            if state.is_detached {
                lease.renew(object)?;
                self.reattach(number, object, instance, notices)?;
                continue;
            }
            let first = state.filters_ahead.first();
            let best = state
                .best_priority
                .filter(|best| first.is_some_and(|first| *best <= first.place.priority));
            let last_overtake = self.all[number].last_overtake;
            let is_soon = last_overtake.is_some_and(|last| last.elapsed() < MIN_OVERTAKE_INTERVAL);
            match best {
                Some(best) if !is_soon => {
                    lease.renew(object)?;
                    self.overtake(number, object, instance, best, notices)?;
                    continue;
                }
                Some(_) => self.is_overtake_pending = true,
                None => {}
            }
            self.all[number].report_ahead(&state, notices);
        }
        Ok(())
    }

    /// Forgets removed qdiscs: another one at the same place belongs to another process.
    fn forget_qdiscs(
        &mut self,
        instance: &mut Instance,
        changed: &Changed,
    ) -> Result<(), LifetimeError> {
        let is_removed = |qdisc: &mut Qdisc| {
            changed.is_removed(qdisc.netns, qdisc.interface)
                && !std::mem::take(&mut qdisc.is_second)
        };
        self.qdiscs
            .extract_if(.., is_removed)
            .try_for_each(|qdisc| instance.was_undone(qdisc.action))
    }

    /// The states of all attachments, in order.
    fn observe(&self, changed: &Changed) -> Result<Vec<State>, NetworkError> {
        let mut states: Vec<State> = Vec::new();
        states.resize_with(self.all.len(), State::default);
        let mut namespaces: Vec<&Netns> = Vec::new();
        for (attachment, state) in self.all.iter().zip(&mut states) {
            if !namespaces.contains(&&attachment.netns) {
                namespaces.push(&attachment.netns);
            }
            state.is_detached = match (&attachment.owner, attachment.hook) {
                (Owner::Detached, _) => true,
                (Owner::Link(link), Hook::XdpNative | Hook::XdpGeneric) => {
                    !link.is_attached().map_err(NetworkError::Look)?
                }
                _ => false,
            };
        }
        for netns in namespaces {
            let here = || {
                let all = self.all.iter().enumerate();
                all.filter(|(_, attachment)| attachment.netns == *netns)
            };
            let (numbers, hooks): (Vec<usize>, Vec<_>) = here()
                .filter_map(|(number, attachment)| {
                    let link = match &attachment.owner {
                        Owner::Link(link) if attachment.hook == Hook::Tcx => link.id(),
                        Owner::Filter { .. } => 0,
                        _ => return None,
                    };
                    Some((number, (attachment.interface.index, attachment.direction, link)))
                })
                .unzip();
            for (number, found) in numbers.iter().zip(attach::query_tcx(netns, &hooks)?) {
                let Some(attach::TcxState { is_attached, ahead }) = found else { continue };
                states[*number].is_detached |= !is_attached && self.all[*number].hook == Hook::Tcx;
                states[*number].programs_ahead = ahead;
            }
            if !changed.any(netns) && !self.is_overtake_pending {
                continue;
            }
            let (places, hooks): (Vec<_>, Vec<_>) = here()
                .filter_map(|(number, attachment)| {
                    let Owner::Filter { place, program, .. } = attachment.owner else {
                        return None;
                    };
                    let hook = (attachment.interface.index, attachment.direction);
                    Some(((number, place, program), hook))
                })
                .unzip();
            if hooks.is_empty() {
                continue;
            }
            let places = places.iter().zip(clsact::filters(netns, &hooks)?);
            for ((number, place, program), filters) in places {
                let state = &mut states[*number];
                let is_ours =
                    |filter: &Filter| filter.place == *place && filter.program == Some(*program);
                let own = filters.iter().position(is_ours);
                state.is_detached |= own.is_none();
                state.best_priority = Some(clsact::priority(&filters));
                let ahead = filters.into_iter().take(own.unwrap_or_default());
                state.filters_ahead = ahead.filter(|filter| !filter.is_injectors()).collect();
            }
        }
        Ok(states)
    }

    fn reattach(
        &mut self,
        number: usize,
        object: &mut Object,
        instance: &mut Instance,
        notices: &mut Notices,
    ) -> Result<(), NetworkError> {
        let attachment = &mut self.all[number];
        let what = match attachment.hook {
            Hook::Clsact => Interference::FilterRemoved,
            _ => Interference::ProgramDetached,
        };
        match std::mem::replace(&mut attachment.owner, Owner::Detached) {
            Owner::Filter { action, .. } => instance.was_undone(action)?,
            Owner::Link(link) => drop(link),
            Owner::Detached => {}
        }
        let (netns, interface) = (attachment.netns.clone(), attachment.interface.clone());
        let direction = attachment.direction;
        let again = self.attach(object, instance, &netns, &interface, direction);
        let attachment = &mut self.all[number];
        match again {
            Ok((hook, owner)) => {
                (attachment.hook, attachment.owner, attachment.failures) = (hook, owner, 0);
                notices.add(what, attachment.title());
                Ok(())
            }
            // The interface is gone too: the next check forgets it.
            Err(_) if !interface.is_in(&netns)? => Ok(()),
            Err(error) => {
                attachment.failures += 1;
                if attachment.failures < ATTEMPTS {
                    tracing::debug!(%error, "cannot attach again yet");
                    return Ok(());
                }
                let what = format!("injector's program at {}", attachment.title());
                Err(NetworkError::TakenAway { what, source: error.into() })
            }
        }
    }

    /// Moves a filter ahead of all others.
    fn overtake(
        &mut self,
        number: usize,
        object: &mut Object,
        instance: &mut Instance,
        priority: u16,
        notices: &mut Notices,
    ) -> Result<(), NetworkError> {
        let attachment = &mut self.all[number];
        let Owner::Filter { action, place, .. } = attachment.owner else { return Ok(()) };
        attachment.last_overtake = Some(Instant::now());
        if priority == place.priority {
            // Only one filter with injector's handle can have this priority.
            instance.undo(action)?;
            attachment.owner = Owner::Detached;
        }
        let (netns, interface) = (&attachment.netns, &attachment.interface);
        let direction = attachment.direction;
        match add_filter(object, instance, netns, interface, direction, priority) {
            Ok(owner) => {
                if priority != place.priority {
                    instance.undo(action)?;
                }
                attachment.owner = owner;
                notices.add(Interference::FilterOvertaken, attachment.title());
            }
            // Other processes may be making changes at the same time.
            Err(error) => {
                tracing::debug!(%error, "cannot run first yet");
                self.is_overtake_pending = true;
            }
        }
        Ok(())
    }

    /// Makes the next check report again what runs before the programs.
    pub fn tell_again(&mut self) {
        self.all.iter_mut().for_each(|attachment| attachment.ahead.clear());
        self.is_overtake_pending |= self.has_filters();
    }

    /// Forgets attachments to interfaces that are gone. Returns the interfaces' titles.
    pub fn retain(
        &mut self,
        instance: &mut Instance,
        places: &[Place],
    ) -> Result<BTreeSet<String>, LifetimeError> {
        let is_there = |attachment: &Attachment| {
            places.iter().any(|place| {
                place.netns == attachment.netns
                    && place.interfaces.iter().any(|i| i.index == attachment.interface.index)
            })
        };
        let (there, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.all).into_iter().partition(is_there);
        self.all = there;
        let is_back = |attachment: &Attachment| {
            let name = &attachment.interface.name;
            let interfaces = places.iter().flat_map(|place| &place.interfaces);
            interfaces.into_iter().any(|interface| interface.name == *name)
        };
        let names = gone.iter().filter(|attachment| !is_back(attachment));
        let names =
            names.map(|attachment| title(&attachment.netns, &attachment.interface.name)).collect();
        remove(instance, gone)?;
        Ok(names)
    }

    /// Detaches everything.
    pub fn clear(&mut self, instance: &mut Instance) -> Result<(), LifetimeError> {
        remove(instance, std::mem::take(&mut self.all))?;
        self.qdiscs.drain(..).try_for_each(|qdisc| instance.undo(qdisc.action))
    }
}

impl Attachment {
    /// A readable description of its place.
    fn title(&self) -> String {
        let direction = match self.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        title(&self.netns, &format!("{} {direction}", self.interface.name))
    }

    /// Reports what runs before it, each once.
    fn report_ahead(&mut self, state: &State, notices: &mut Notices) {
        let mut ahead = BTreeSet::new();
        let mut report = |what, which: String| {
            let place = format!("{} ({which})", self.title());
            if ahead.insert(which.clone()) && !self.ahead.contains(&which) {
                notices.add(what, place);
            }
        };
        for Filter { kind, place, .. } in &state.filters_ahead {
            report(Interference::FilterAhead, format!("{kind}, pref {}", place.priority));
        }
        for id in &state.programs_ahead {
            let name = link::program_name(*id).unwrap_or_default();
            report(Interference::ProgramAhead, format!("{name}, id {id}"));
        }
        // Filters are listed only after changes.
        if state.best_priority.is_some() || self.hook != Hook::Clsact {
            self.ahead = ahead;
        } else {
            self.ahead.extend(ahead);
        }
    }
}

/// A readable description of a place in a namespace.
pub fn title(netns: &Netns, place: &str) -> String {
    match netns.label() {
        "current" => place.to_owned(),
        label => format!("{place} in {label}"),
    }
}

/// Adds a filter, journaled.
fn add_filter(
    object: &mut Object,
    instance: &mut Instance,
    netns: &Netns,
    interface: &Interface,
    direction: Direction,
    priority: u16,
) -> Result<Owner, NetworkError> {
    let place = clsact::Place { priority, handle: clsact::handle(instance.slot()) };
    let name = attach::program(interface, direction);
    let program = object.classifier(name)?;
    let refused =
        |source: ProgramError| KernelError::Program { program: name.into(), source: source.into() };
    let id = program.info().map_err(refused)?.id();
    let action = Action::AddFilter {
        netns: netns.inode(),
        interface: interface.index,
        name: interface.name.clone(),
        egress: direction == Direction::Egress,
        handle: place.handle,
        priority,
        program: Some(id),
    };
    let add = || {
        clsact::add_filter(program, netns, interface, direction, place)
            .map_err(std::io::Error::other)
    };
    Ok(Owner::Filter { action: instance.perform(action, add)?, place, program: id })
}

fn remove(instance: &mut Instance, attachments: Vec<Attachment>) -> Result<(), LifetimeError> {
    for attachment in attachments {
        if let Owner::Filter { action, .. } = attachment.owner {
            instance.undo(action)?;
        }
    }
    Ok(())
}
