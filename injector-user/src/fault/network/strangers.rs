//! Finds sockets that the processes of a cgroup hold, but that were created in another one: their
//! packets belong to the other.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::NetworkError;
use crate::{
    kernel::{diag, netns::Netns, sockets},
    target::cgroup::{Cgroup, Hierarchy, for_each_below, id_of},
};

/// The cgroups in which such sockets were created, by their path in the hierarchy, with the number of
/// sockets.
pub fn of_cgroup<'a>(
    cgroup: &Cgroup,
    namespaces: impl IntoIterator<Item = &'a Netns>,
) -> Result<BTreeMap<String, usize>, NetworkError> {
    let processes = cgroup.processes().into_iter();
    let held: HashSet<u64> =
        processes.flat_map(sockets::of_process).map(|(_, inode)| inode).collect();
    let mut strangers = BTreeMap::new();
    if held.is_empty() {
        return Ok(strangers);
    }
    let own = ids_below(cgroup);
    let mut counts: HashMap<u64, usize> = HashMap::new();
    for netns in namespaces {
        for (inode, id) in diag::cgroups_of_sockets(netns)? {
            if held.contains(&inode) && !own.contains(&id) {
                *counts.entry(id).or_default() += 1;
            }
        }
    }
    if counts.is_empty() {
        return Ok(strangers);
    }
    // A cgroup that was removed is not found. It may have been in the target.
    let hierarchy = Hierarchy::find()?;
    let _ = for_each_below(hierarchy.mount(), &mut |path| {
        if let Some(count) = id_of(path).and_then(|id| counts.get(&id)) {
            let below = path.strip_prefix(hierarchy.mount()).unwrap_or(path);
            strangers.insert(format!("/{}", below.display()), *count);
        }
        Ok(())
    });
    Ok(strangers)
}

fn ids_below(cgroup: &Cgroup) -> HashSet<u64> {
    let mut ids = HashSet::new();
    // Cgroups that cannot be read are taken for others.
    let _ = for_each_below(&cgroup.path, &mut |path| {
        ids.extend(id_of(path));
        Ok(())
    });
    ids
}
