//! The processes of a command that injector starts.

use std::sync::Arc;

use super::{Processes, Resolved};
use crate::{
    kernel::netns::Netns,
    target::{Whose, cgroup::Cgroup},
};

struct Command;

/// The processes of a new command in its cgroup, in `netns` and in any namespace that they enter.
#[must_use]
pub fn of_command(cgroup: Cgroup, netns: Netns) -> Resolved {
    Resolved {
        whose: Whose::Cgroup(cgroup),
        processes: Some(Arc::new(Command)),
        namespaces: vec![netns],
        follows: true,
    }
}

impl Processes for Command {
    fn identity(&self) -> String {
        "command".into()
    }

    fn can_return(&self) -> bool {
        false
    }
}
