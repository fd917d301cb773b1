//! Where the programs of one injector are attached, and who sees to it that they come off.

use crate::{
    kernel::{
        attach::{self, Hook, OwnedLink},
        clsact,
        interface::Interface,
        netns::Netns,
        object::Object,
    },
    lifetime::{LifetimeError, action::Action, instance::Instance, journal},
    target::Place,
};
use injector_common::packet::Direction;

use super::{HookChoice, NetworkError};

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
}

#[derive(Debug)]
enum Owner {
    Link { _link: OwnedLink },
    Journal { filter: u32 },
}

/// All attachments. They are to be removed by [`Self::clear`]; if that is not called, links still end with
/// this value, and filters with the [`Instance`].
#[derive(Debug, Default)]
pub struct Attachments {
    all: Vec<Attachment>,
    /// What to undo once no filter of ours is left.
    qdiscs: Vec<u32>,
    choice: HookChoice,
}

impl Attachments {
    /// None yet.
    #[must_use]
    pub const fn new(choice: HookChoice) -> Self {
        Self { all: Vec::new(), qdiscs: Vec::new(), choice }
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
        let (hook, owner) = match self.choice {
            HookChoice::Xdp => {
                let (link, hook) = attach::xdp(object, netns, interface)?;
                (hook, Owner::Link { _link: link })
            }
            HookChoice::Clsact => {
                (Hook::Clsact, self.filter(object, instance, netns, interface, direction)?)
            }
            HookChoice::Tcx => match attach::tcx(object, netns, interface, direction) {
                Ok(link) => (Hook::Tcx, Owner::Link { _link: link }),
                Err(error) if attach::is_unknown(&error) => {
                    tracing::debug!(%error, "no tcx, so clsact");
                    self.choice = HookChoice::Clsact;
                    (Hook::Clsact, self.filter(object, instance, netns, interface, direction)?)
                }
                Err(error) => return Err(error.into()),
            },
        };
        self.all.push(Attachment {
            interface: interface.clone(),
            netns: netns.clone(),
            direction,
            hook,
            owner,
        });
        Ok(&self.all[self.all.len() - 1])
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
        let add_qdisc = Action::AddClsact { netns: inode, interface: index, name: name.clone() };
        if !clsact::has_qdisc(netns, index)? {
            self.qdiscs.push(instance.perform(add_qdisc, || clsact::add_qdisc(netns, interface))?);
        } else if !instance.has_done(&add_qdisc) && journal::is_announced(&add_qdisc) {
            // Another injector made it; whichever ends last removes it.
            self.qdiscs.push(instance.perform(add_qdisc, || Ok(()))?);
        }
        let handle = instance.slot() as u16 + 1;
        let egress = direction == Direction::Egress;
        let add_filter = Action::AddFilter { netns: inode, interface: index, name, egress, handle };
        let program = object.classifier(attach::program(interface, direction))?;
        let add = || {
            clsact::add_filter(program, netns, interface, direction, handle)
                .map_err(std::io::Error::other)
        };
        Ok(Owner::Journal { filter: instance.perform(add_filter, add)? })
    }

    /// Forgets what was attached to interfaces that are gone.
    pub fn retain(
        &mut self,
        instance: &mut Instance,
        places: &[Place],
    ) -> Result<(), LifetimeError> {
        let is_there = |attachment: &Attachment| {
            places.iter().any(|place| {
                place.netns == attachment.netns
                    && place.interfaces.iter().any(|i| i.index == attachment.interface.index)
            })
        };
        let (there, gone) = std::mem::take(&mut self.all).into_iter().partition(is_there);
        self.all = there;
        remove(instance, gone)
    }

    /// Detaches everything.
    pub fn clear(&mut self, instance: &mut Instance) -> Result<(), LifetimeError> {
        remove(instance, std::mem::take(&mut self.all))?;
        self.qdiscs.drain(..).try_for_each(|qdisc| instance.undo(qdisc))
    }
}

fn remove(instance: &mut Instance, attachments: Vec<Attachment>) -> Result<(), LifetimeError> {
    for attachment in attachments {
        if let Owner::Journal { filter } = attachment.owner {
            instance.undo(filter)?;
        }
    }
    Ok(())
}
