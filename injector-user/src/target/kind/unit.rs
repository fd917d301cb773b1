//! A systemd unit, found by its cgroup, without calling systemd.
//!
//! systemd names a cgroup after its unit and nests it in those of its slices: `a-b.slice` is in
//! `a.slice`, and instances `x@….service` of the system are in `system-x.slice` by default. The units
//! of a user are below `user@UID.service` (systemd.slice(5), `cg_escape` in cgroup-util.c).

use std::{
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::{Uid, User};
use thiserror::Error;

use super::{Processes, Resolved, Successor};
use crate::{
    spec::target::{TargetSpec, UnitName},
    target::{
        ResolveError, Whose,
        cgroup::{Cgroup, Hierarchy, says},
    },
};

/// Maximum number of units listed in a message.
const MAX_LISTED: usize = 5;

/// The least similarity of names for a suggestion, as in clap.
const MIN_SIMILARITY: f64 = 0.7;

/// Why a unit cannot be a target.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum UnitError {
    /// No unit of this name runs.
    #[error("the unit {name} does not run: {known}")]
    NotRunning {
        /// The requested unit.
        name: UnitName,
        /// Units with similar names.
        known: String,
    },
    /// Several users run a unit of this name.
    #[error("several users run the unit {name}: name one of {units}")]
    Users {
        /// The requested unit.
        name: UnitName,
        /// The units of these users.
        units: String,
    },
    /// Several cgroups are named after the unit.
    #[error("the unit {name} may be in any of {cgroups}: name one of them with --cgroup")]
    Cgroups {
        /// The requested unit.
        name: UnitName,
        /// The cgroups.
        cgroups: String,
    },
    /// The user does not exist.
    #[error("there is no user {0}: write USER/NAME with the name or ID of a user")]
    NoUser(String),
}

/// The service manager that runs a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Manager {
    System,
    User(u32),
}

/// A unit that has processes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unit {
    manager: Manager,
    /// Full name, with its type.
    name: String,
    cgroup: PathBuf,
}

impl Display for Unit {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.manager {
            Manager::System => f.write_str(&self.name),
            Manager::User(id) => match user_name(id) {
                Some(user) => write!(f, "{user}/{}", self.name),
                None => write!(f, "{id}/{}", self.name),
            },
        }
    }
}

/// The processes of a unit, and those after it is restarted.
struct UnitProcesses {
    manager: Manager,
    name: String,
    title: String,
}

/// The unit that a target names, if it names one.
pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let Some(wanted) = &spec.unit else { return Ok(None) };
    let hierarchy = Hierarchy::find()?;
    let unit = choose(&running(hierarchy.mount()), wanted)?;
    Ok(Some(Resolved {
        whose: Whose::Cgroup(hierarchy.open(&unit.cgroup)?),
        processes: Some(Arc::new(UnitProcesses::of(unit))),
        namespaces: Vec::new(),
        follows: true,
    }))
}

impl UnitProcesses {
    fn of(unit: Unit) -> Self {
        let title = format!("unit {unit}");
        Self { manager: unit.manager, name: unit.name, title }
    }
}

impl Processes for UnitProcesses {
    fn identity(&self) -> String {
        format!("unit {:?} {}", self.manager, self.name)
    }

    fn title(&self) -> Option<&str> {
        Some(&self.title)
    }

    /// systemd creates the sockets of a socket unit.
    fn owns_held_sockets(&self) -> bool {
        true
    }

    fn successor(&self, hierarchy: &Hierarchy, _cgroup: &Cgroup) -> Option<Successor> {
        let mut units = running(hierarchy.mount()).into_iter();
        let unit = units.find(|unit| unit.manager == self.manager && unit.name == self.name)?;
        Some((hierarchy.open(&unit.cgroup).ok()?, Arc::new(Self::of(unit))))
    }
}

/// Selects the requested unit, or explains why there is none.
fn choose(units: &[Unit], wanted: &UnitName) -> Result<Unit, UnitError> {
    let user = wanted.user.as_deref().map(user_id).transpose()?.map(Manager::User);
    let is_meant = |unit: &&Unit| {
        unit.name == wanted.name && user.is_none_or(|manager| unit.manager == manager)
    };
    let mut found: Vec<&Unit> = units.iter().filter(is_meant).collect();
    // As for systemctl, units of the system come first.
    if found.iter().any(|unit| unit.manager == Manager::System) {
        found.retain(|unit| unit.manager == Manager::System);
    }
    match found[..] {
        [unit] => Ok(unit.clone()),
        [] => Err(UnitError::NotRunning { name: wanted.clone(), known: similar(units, wanted) }),
        [first, ..] if found.iter().any(|unit| unit.manager != first.manager) => {
            let units: Vec<String> = found.iter().map(ToString::to_string).collect();
            Err(UnitError::Users { name: wanted.clone(), units: units.join(", ") })
        }
        _ => {
            let cgroups: Vec<_> =
                found.iter().map(|unit| unit.cgroup.display().to_string()).collect();
            Err(UnitError::Cgroups { name: wanted.clone(), cgroups: cgroups.join(", ") })
        }
    }
}

/// Which units have similar names, for a message.
fn similar(units: &[Unit], wanted: &UnitName) -> String {
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_lowercase();
    let asked = stem(&wanted.name);
    let similarity = |unit: &Unit| {
        let name = stem(&unit.name);
        if name.contains(&asked) { 1.0 } else { strsim::jaro(&name, &asked) }
    };
    let rated = units.iter().map(|unit| (similarity(unit), unit.to_string()));
    let mut rated: Vec<_> = rated.filter(|(rating, _)| *rating > MIN_SIMILARITY).collect();
    rated.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let mut names: Vec<String> = rated.into_iter().map(|(_, name)| name).collect();
    names.dedup();
    names.truncate(MAX_LISTED);
    match (names.is_empty(), units.is_empty()) {
        (false, _) => format!("there are {}", names.join(", ")),
        (true, false) => "no unit with a similar name runs".into(),
        (true, true) => "no cgroup here is named after a unit of systemd".into(),
    }
}

/// The units that have processes.
fn running(root: &Path) -> Vec<Unit> {
    let mut units = Vec::new();
    collect(root, Manager::System, "", &mut units);
    units.retain(|unit| !says(&unit.cgroup, "populated 0"));
    let order = |unit: &Unit| (unit.manager, unit.name.clone(), unit.cgroup.clone());
    units.sort_by_cached_key(order);
    units
}

/// Adds the units in the cgroup of a slice, or of a manager if `slice` is empty.
///
/// Only slices and user managers contain units. What is below other units belongs to these, which may
/// give any names.
fn collect(directory: &Path, manager: Manager, slice: &str, units: &mut Vec<Unit>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (file_name, cgroup) = (entry.file_name(), entry.path());
        let Some(name) = file_name.to_str() else { continue };
        // systemd adds this to names that the kernel uses for files, such as cpu.service.
        let name = name.strip_prefix('_').unwrap_or(name);
        let is_unit = name.parse::<UnitName>().is_ok_and(|unit| unit.name == name);
        if !is_unit || !cgroup.is_dir() {
            continue;
        }
        if let Some(child) = name.strip_suffix(".slice") {
            // Bounds the depth by the length of a name.
            let is_within = match child.strip_prefix(slice) {
                Some(rest) if slice.is_empty() => !rest.contains('-'),
                Some(rest) => rest.starts_with('-') && !rest[1..].contains('-'),
                None => false,
            };
            if !is_within {
                continue;
            }
            collect(&cgroup, manager, child, units);
        } else if manager == Manager::System
            && let Some(user) = manager_of(name)
        {
            collect(&cgroup, Manager::User(user), "", units);
        }
        units.push(Unit { manager, name: name.into(), cgroup });
    }
}

/// The user whose manager runs as this unit.
fn manager_of(unit: &str) -> Option<u32> {
    unit.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok()
}

fn user_id(user: &str) -> Result<u32, UnitError> {
    if let Ok(id) = user.parse() {
        return Ok(id);
    }
    let found = User::from_name(user).ok().flatten();
    found.map(|user| user.uid.as_raw()).ok_or_else(|| UnitError::NoUser(user.into()))
}

fn user_name(id: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(id)).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these cgroups, all populated, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, cgroups: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("injector-{name}-{}", std::process::id()));
            for cgroup in cgroups {
                let path = root.join(cgroup.trim_start_matches('/'));
                fs::create_dir_all(path).expect("it can be made");
            }
            Self(root)
        }

        fn choose(&self, wanted: &str) -> Result<String, UnitError> {
            let unit = choose(&running(&self.0), &wanted.parse().expect("a unit"))?;
            let below = unit.cgroup.strip_prefix(&self.0).expect("below the root");
            Ok(format!("{unit} {}", below.display()))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn units_are_found_by_the_names_of_their_cgroups() {
        let tree = Tree::new(
            "units",
            &[
                "init.scope",
                "system.slice/nginx.service/worker",
                "system.slice/_cpu.service",
                "system.slice/system-getty.slice/getty@tty1.service",
                "system.slice/srv-data\\x2d1.mount",
                "user.slice/user-4242421.slice/session-3.scope",
                "user.slice/user-4242421.slice/user@4242421.service/init.scope",
                "user.slice/user-4242421.slice/user@4242421.service/app.slice/app-web.slice/web.service",
                "user.slice/user-4242421.slice/user@4242421.service/app.slice/sync.service",
                "user.slice/user-4242422.slice/user@4242422.service/app.slice/sync.service",
            ],
        );
        for (wanted, expected) in [
            ("nginx", "nginx.service system.slice/nginx.service"),
            ("cpu.service", "cpu.service system.slice/_cpu.service"),
            ("getty@tty1", "getty@tty1.service system.slice/system-getty.slice/getty@tty1.service"),
            ("srv-data\\x2d1.mount", "srv-data\\x2d1.mount system.slice/srv-data\\x2d1.mount"),
            ("system-getty.slice", "system-getty.slice system.slice/system-getty.slice"),
            // Both the system and a user have one.
            ("init.scope", "init.scope init.scope"),
            (
                "4242421/init.scope",
                "4242421/init.scope user.slice/user-4242421.slice/user@4242421.service/init.scope",
            ),
            (
                "web",
                "4242421/web.service \
                 user.slice/user-4242421.slice/user@4242421.service/app.slice/app-web.slice/web.service",
            ),
            (
                "4242422/sync",
                "4242422/sync.service \
                 user.slice/user-4242422.slice/user@4242422.service/app.slice/sync.service",
            ),
            ("session-3.scope", "session-3.scope user.slice/user-4242421.slice/session-3.scope"),
        ] {
            assert_eq!(tree.choose(wanted).as_deref(), Ok(expected), "{wanted}");
        }
        let error = tree.choose("sync").expect_err("two users have it").to_string();
        assert!(error.contains("4242421/sync.service, 4242422/sync.service"), "{error}");
        let error = tree.choose("nosuchuser1/sync").expect_err("there is no such user").to_string();
        assert!(error.contains("no user nosuchuser1"), "{error}");
        for wanted in ["ngin", "nignx", "4242422/nginx", "NGINX.scope"] {
            let error = tree.choose(wanted).expect_err("it does not run").to_string();
            assert!(error.contains("does not run: there are nginx.service"), "{error}");
        }
        let error = tree.choose("postgresql").expect_err("it does not run").to_string();
        assert!(error.contains("no unit with a similar name"), "{error}");
    }

    #[test]
    fn cgroups_below_other_units_are_no_units() {
        let tree = Tree::new(
            "fakes",
            &[
                "system.slice/nginx.service",
                // A service with delegated cgroups, a container, and slices that are out of place.
                "system.slice/other.service/nginx.service",
                "system.slice/docker-1.scope/system.slice/nginx.service",
                "docker/1/system.slice/nginx.service",
                "system.slice/a.slice/nginx.service",
                "a-b.slice/nginx.service",
                "user.slice/user-4242421.slice/user@4242421.service/user@4242422.service/fake.service",
            ],
        );
        assert_eq!(tree.choose("nginx").as_deref(), Ok("nginx.service system.slice/nginx.service"));
        assert!(tree.choose("fake").is_err());
        let twice = Tree::new("twice", &["a.slice/x.service", "b.slice/x.service"]);
        let error = twice.choose("x").expect_err("there are two").to_string();
        assert!(error.contains("a.slice/x.service, ") && error.contains("--cgroup"), "{error}");
    }
}
