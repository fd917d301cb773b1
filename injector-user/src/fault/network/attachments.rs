//! Where the programs of one injector are attached, and who sees to it that they come off.

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

/// How often in a row an attachment may fail that was taken away: somebody may be at it just then.
pub const ATTEMPTS: u32 = 4;

/// How often a filter may be put ahead of others again: somebody else may want the same for theirs.
const OVERTAKING: Duration = Duration::from_secs(5);

/// A program on an interface.
#[derive(Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// The namespace.
    pub netns: Netns,
    /// Which packets it sees.
    pub direction: Direction,
    /// Where.
    pub hook: Hook,
    /// Held for its `Drop`, or what to undo by the journal.
    owner: Owner,
    /// How often in a row it could not be attached again.
    failures: u32,
    /// What runs before it, as far as that was said.
    ahead: BTreeSet<String>,
    /// When it was put ahead of others last.
    overtook: Option<Instant>,
}

#[derive(Debug)]
enum Owner {
    Link(Link),
    Filter {
        action: u32,
        place: clsact::Place,
        program: u32,
    },
    /// It was taken away.
    Nobody,
}

/// What a look shows of an attachment.
#[derive(Debug, Default)]
struct Seen {
    is_detached: bool,
    /// The filters before it that are no injector's.
    filters_ahead: Vec<Filter>,
    /// The priority at which it would run first.
    best_priority: Option<u16>,
    /// The programs before it that are no injector's, by their ids.
    programs_ahead: Vec<u32>,
}

/// A qdisc to be removed once no filter of ours is left.
#[derive(Debug)]
struct Qdisc {
    netns: u64,
    interface: u32,
    action: u32,
    /// The kernel has yet to tell that the one before was removed.
    is_second: bool,
}

/// All attachments. They are to be removed by [`Self::clear`]; if that is not called, links still end with
/// this value, and filters with the [`Instance`].
#[derive(Debug, Default)]
pub struct Attachments {
    all: Vec<Attachment>,
    qdiscs: Vec<Qdisc>,
    /// A filter is to be put ahead of others, but not yet.
    waits: bool,
    choice: HookChoice,
}

impl Attachments {
    /// None yet.
    #[must_use]
    pub const fn new(choice: HookChoice) -> Self {
        Self { all: Vec::new(), qdiscs: Vec::new(), waits: false, choice }
    }

    /// Whether filters are added, of which the kernel tells when they are removed.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        self.all.iter().any(|attachment| attachment.hook == Hook::Clsact)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Attachment] {
        &self.all
    }

    /// Whether there is one for this direction of this interface.
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
        let (hook, owner) = self.own(object, instance, netns, interface, direction)?;
        self.all.push(Attachment {
            interface: interface.clone(),
            netns: netns.clone(),
            direction,
            hook,
            owner,
            failures: 0,
            ahead: BTreeSet::new(),
            overtook: None,
        });
        Ok(&self.all[self.all.len() - 1])
    }

    fn own(
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
                    tracing::debug!(%error, "no tcx, so clsact");
                    self.choice = HookChoice::Clsact;
                    let filter = self.filter(object, instance, netns, interface, direction)?;
                    Ok((Hook::Clsact, filter))
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Adds a filter, and a clsact qdisc if there is none, both journalled.
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
                // Another injector made it; whichever ends last removes it.
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

    /// Looks whether all that was attached is still so, and attaches what was taken away.
    pub fn look(
        &mut self,
        object: &mut Object,
        instance: &mut Instance,
        changed: &Changed,
        notices: &mut Notices,
        lease: &Lease,
    ) -> Result<(), NetworkError> {
        self.forget_qdiscs(instance, changed)?;
        let seen = self.see(changed)?;
        self.waits = false;
        for (number, seen) in seen.into_iter().enumerate() {
            if seen.is_detached {
                lease.renew(object)?;
                self.attach_again(number, object, instance, notices)?;
                continue;
            }
            let first = seen.filters_ahead.first();
            let best = seen
                .best_priority
                .filter(|best| first.is_some_and(|first| *best <= first.place.priority));
            let overtook = self.all[number].overtook;
            let is_soon = overtook.is_some_and(|last| last.elapsed() < OVERTAKING);
            match best {
                Some(best) if !is_soon => {
                    lease.renew(object)?;
                    self.overtake(number, object, instance, best, notices)?;
                    continue;
                }
                Some(_) => self.waits = true,
                None => {}
            }
            self.all[number].tell_ahead(&seen, notices);
        }
        Ok(())
    }

    /// A qdisc that was removed is not ours to remove any more, even if there is another one.
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

    /// What a look shows, in the order of the attachments.
    fn see(&self, changed: &Changed) -> Result<Vec<Seen>, NetworkError> {
        let mut seen: Vec<Seen> = Vec::new();
        seen.resize_with(self.all.len(), Seen::default);
        let mut namespaces: Vec<&Netns> = Vec::new();
        for (attachment, seen) in self.all.iter().zip(&mut seen) {
            if !namespaces.contains(&&attachment.netns) {
                namespaces.push(&attachment.netns);
            }
            seen.is_detached = match (&attachment.owner, attachment.hook) {
                (Owner::Nobody, _) => true,
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
                seen[*number].is_detached |= !is_attached && self.all[*number].hook == Hook::Tcx;
                seen[*number].programs_ahead = ahead;
            }
            if !changed.any(netns) && !self.waits {
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
                let seen = &mut seen[*number];
                let is_ours =
                    |filter: &Filter| filter.place == *place && filter.program == Some(*program);
                let own = filters.iter().position(is_ours);
                seen.is_detached |= own.is_none();
                seen.best_priority = Some(clsact::priority(&filters));
                let ahead = filters.into_iter().take(own.unwrap_or_default());
                seen.filters_ahead = ahead.filter(|filter| !filter.is_injectors()).collect();
            }
        }
        Ok(seen)
    }

    fn attach_again(
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
        match std::mem::replace(&mut attachment.owner, Owner::Nobody) {
            Owner::Filter { action, .. } => instance.was_undone(action)?,
            Owner::Link(link) => drop(link),
            Owner::Nobody => {}
        }
        let (netns, interface) = (attachment.netns.clone(), attachment.interface.clone());
        let direction = attachment.direction;
        let again = self.own(object, instance, &netns, &interface, direction);
        let attachment = &mut self.all[number];
        match again {
            Ok((hook, owner)) => {
                (attachment.hook, attachment.owner, attachment.failures) = (hook, owner, 0);
                notices.add(what, attachment.title());
                Ok(())
            }
            // It went as well, and is forgotten at the next look.
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

    /// Has a filter run before all others.
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
        attachment.overtook = Some(Instant::now());
        if priority == place.priority {
            // There can be but one of ours there.
            instance.undo(action)?;
            attachment.owner = Owner::Nobody;
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
            // Others may be at it as well.
            Err(error) => {
                tracing::debug!(%error, "cannot run first yet");
                self.waits = true;
            }
        }
        Ok(())
    }

    /// Has the next look tell anew what runs before the programs.
    pub fn tell_again(&mut self) {
        self.all.iter_mut().for_each(|attachment| attachment.ahead.clear());
        self.waits |= self.has_filters();
    }

    /// Forgets what was attached to interfaces that are gone; returns their titles.
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
    /// Where it is, for people.
    fn title(&self) -> String {
        let side = match self.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        title(&self.netns, &format!("{} {side}", self.interface.name))
    }

    /// Says what runs before it, once for each.
    fn tell_ahead(&mut self, seen: &Seen, notices: &mut Notices) {
        let mut ahead = BTreeSet::new();
        let mut tell = |what, which: String| {
            let place = format!("{} ({which})", self.title());
            if ahead.insert(which.clone()) && !self.ahead.contains(&which) {
                notices.add(what, place);
            }
        };
        for Filter { kind, place, .. } in &seen.filters_ahead {
            tell(Interference::FilterAhead, format!("{kind}, pref {}", place.priority));
        }
        for id in &seen.programs_ahead {
            let name = link::program_name(*id).unwrap_or_default();
            tell(Interference::ProgramAhead, format!("{name}, id {id}"));
        }
        // Filters are listed only when something has changed.
        if seen.best_priority.is_some() || self.hook != Hook::Clsact {
            self.ahead = ahead;
        } else {
            self.ahead.extend(ahead);
        }
    }
}

/// A place in a namespace, for people.
pub fn title(netns: &Netns, place: &str) -> String {
    match netns.label() {
        "current" => place.to_owned(),
        label => format!("{place} in {label}"),
    }
}

/// Adds a filter, journalled.
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
