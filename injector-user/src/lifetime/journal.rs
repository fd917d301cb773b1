//! Journals: one file for each running injector, locked while that injector lives.
//!
//! A journal is a sequence of JSON lines. Each line is written whole before its action is
//! performed, so a truncated last line announces an action that never happened. Nothing is flushed
//! to disk, which would take milliseconds where /run is on one: the file outlives the process, and
//! the announced changes do not outlive the kernel.

use std::{
    fmt::{self, Display, Formatter},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    LifetimeError,
    action::{Action, Undone},
};
use crate::kernel::pidfd::{self, Handle};

/// Maximum number of running injectors: each has its own bit in `skb->tc_index`.
pub const SLOTS: u32 = 16;

/// The directory of the journals.
const FOLDER: &str = "/run/injector";

/// How long a process may take to end once its lock is free. The kernel closes its files one by
/// one, and its eBPF programs act until theirs are closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The owner of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    /// Its process ID.
    pub pid: u32,
    /// Its start time in clock ticks since boot; 0 if unknown.
    #[serde(default)]
    pub ticks: u64,
    /// Its start time in RFC 3339.
    pub started: String,
    /// Its command line.
    pub command: Vec<String>,
}

impl Owner {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            ticks: Handle::open(pid.cast_signed()).map_or(0, |own| own.started),
            started: jiff::Timestamp::now().to_string(),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        }
    }
}

/// An action of a dead injector that was undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The injector; `None` if it died before it was recorded.
    pub owner: Option<Owner>,
    /// The action.
    pub action: Action,
}

impl Display for Leftover {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        /// Maximum length of a command line.
        const SHOWN: usize = 200;

        self.action.undone().fmt(f)?;
        let Some(Owner { pid, started, command, .. }) = &self.owner else { return Ok(()) };
        let command: String = command.join(" ").chars().take(SHOWN).collect();
        let started = started.parse().map_or_else(
            |_| started.clone(),
            |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        );
        write!(f, " (left by injector {pid}, started at {started}: {command})")
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Owner(Owner),
    /// What the owner faults, in the form of its output. Each line replaces the one before.
    Faults(Value),
    Do {
        id: u32,
        action: Action,
    },
    Undone {
        id: u32,
    },
    /// The journal is being undone. Any injector whose end may unblock an action must retry it.
    Ending,
}

/// The contents of a journal.
#[derive(Debug, Default)]
pub struct Contents {
    /// The owner; `None` if it died before it was recorded.
    pub owner: Option<Owner>,
    /// What the owner faults, if it told.
    pub faulted: Option<Value>,
    /// Actions that are not undone, in the order they were performed.
    pub actions: Vec<(u32, Action)>,
    /// Whether undoing has started.
    pub is_ending: bool,
}

impl Contents {
    /// Whether the slot is free: any leftovers only wait for others to end.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.actions.iter().all(|(_, action)| matches!(action, Action::MakeCgroup { .. }))
    }
}

/// A journal that is locked by this process.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
}

/// The file of slot `slot`.
#[must_use]
pub fn path(slot: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("{slot}.journal"))
}

/// The contents of a slot's journal, whoever owns it; `None` if it does not exist.
#[must_use]
pub fn peek(slot: u32) -> Option<Contents> {
    let mut text = String::new();
    open(&path(slot), false).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    Some(parse(&text))
}

/// Opens a journal. Its actions are undone with root privileges, so a journal that others may have
/// written is rejected.
fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let is_ours = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    if !metadata.is_file() || !is_ours || metadata.mode() & 0o022 != 0 {
        let error = "others can write to it: remove it, and see who did";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    Ok(file)
}

/// Whether any journal announces this action.
#[must_use]
pub fn is_announced(action: &Action) -> bool {
    announcements(action) > 0
}

/// How many journals announce this action.
#[must_use]
pub fn announcements(action: &Action) -> usize {
    (0..SLOTS)
        .filter_map(peek)
        .filter(|contents| contents.actions.iter().any(|(_, done)| done == action))
        .count()
}

/// All actions announced by journals.
pub fn announced() -> impl Iterator<Item = Action> {
    let actions = (0..SLOTS).filter_map(peek).flat_map(|contents| contents.actions);
    actions.map(|(_, action)| action)
}

impl Journal {
    /// Locks the journal of a slot, creating it if necessary; `None` if a living process owns it.
    pub fn lock(slot: u32) -> Result<Option<Self>, LifetimeError> {
        Self::open(slot, true, FlockArg::LockExclusiveNonblock)
    }

    /// Locks the journal of a slot; `None` if it does not exist or a living process owns it.
    pub fn lock_existing(slot: u32) -> Result<Option<Self>, LifetimeError> {
        Self::open(slot, false, FlockArg::LockExclusiveNonblock)
    }

    /// Whether a living process owns the journal of a slot.
    #[must_use]
    pub fn is_locked(slot: u32) -> bool {
        path(slot).exists() && matches!(Self::lock_existing(slot), Ok(None))
    }

    /// Like [`Self::lock_existing`], but waits for the owner to end.
    pub fn inherit(slot: u32) -> Result<Option<Self>, LifetimeError> {
        Self::open(slot, false, FlockArg::LockExclusive)
    }

    fn open(slot: u32, create: bool, lock: FlockArg) -> Result<Option<Self>, LifetimeError> {
        let path = path(slot);
        let fail = |source| LifetimeError::Journal { path: path.clone(), source };
        if create {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER).map_err(fail)?;
            // Others may have created it, such as the kubelet.
            let mode = fs::metadata(FOLDER).map_err(fail)?.permissions().mode();
            if mode & 0o077 != 0 {
                fs::set_permissions(FOLDER, Permissions::from_mode(0o700)).map_err(fail)?;
            }
        }
        loop {
            let file = match open(&path, create) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !create => {
                    return Ok(None);
                }
                Err(error) => return Err(fail(error)),
            };
            let file = match Flock::lock(file, lock) {
                Ok(file) => file,
                Err((_, nix::Error::EWOULDBLOCK)) => return Ok(None),
                Err((_, nix::Error::EINTR)) => continue,
                Err((_, error)) => return Err(fail(error.into())),
            };
            // The file may have been removed between opening and locking; then this lock protects
            // nothing.
            let locked = file.metadata().map_err(fail)?;
            match fs::metadata(&path) {
                Ok(current) if (current.dev(), current.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Some(Self { file, path }));
                }
                _ => {}
            }
        }
    }

    /// Reads the contents.
    pub fn read(&mut self) -> Result<Contents, LifetimeError> {
        let mut text = String::new();
        self.file
            .rewind()
            .and_then(|()| self.file.read_to_string(&mut text))
            .map_err(|source| LifetimeError::Journal { path: self.path.clone(), source })?;
        Ok(parse(&text))
    }

    /// Records the new owner. Leftovers of previous owners stay and are undone together with its
    /// own actions. Returns the next action ID.
    pub fn begin(&mut self, owner: Owner) -> Result<u32, LifetimeError> {
        let left = self.read()?.actions.into_iter().map(|(id, _)| id).max();
        if left.is_none() {
            self.file
                .rewind()
                .and_then(|()| self.file.set_len(0))
                .map_err(|source| LifetimeError::Journal { path: self.path.clone(), source })?;
        }
        self.write(&Line::Owner(owner))?;
        Ok(left.map_or(0, |id| id.wrapping_add(1)))
    }

    /// Records what the owner faults, for [`super::instance::running`].
    pub fn describe(&mut self, faulted: &impl Serialize) -> Result<(), LifetimeError> {
        let faulted = serde_json::to_value(faulted).map_err(|error| LifetimeError::Journal {
            path: self.path.clone(),
            source: error.into(),
        })?;
        self.write(&Line::Faults(faulted))
    }

    /// Records an action that is about to be performed, or updates the one with the same ID.
    pub fn announce(&mut self, id: u32, action: &Action) -> Result<(), LifetimeError> {
        self.write(&Line::Do { id, action: action.clone() })
    }

    /// Records that an action was undone.
    pub fn undone(&mut self, id: u32) -> Result<(), LifetimeError> {
        self.write(&Line::Undone { id })
    }

    /// Undoes all actions in reverse order and removes the journal. Returns the undone actions. The
    /// journal stays if an action cannot be undone or its result is in use.
    pub fn settle(mut self) -> Result<Vec<Leftover>, LifetimeError> {
        let mut settled = Vec::new();
        let mut failure = None;
        let Contents { owner, actions, is_ending, .. } = self.read()?;
        if let Some(owner) = &owner
            && owner.pid != std::process::id()
            // If the owner is still acting, later actions could be missed.
            && let Err(error) = pidfd::wait_for_end(owner.pid, owner.ticks, EXIT_TIMEOUT)
        {
            tracing::debug!(%error, "cannot wait for the end of a dead injector");
        }
        if !is_ending && !actions.is_empty() {
            // Written before the usage checks, so that injectors ending later see it
            // (`cleanup::sweep`).
            self.write(&Line::Ending)?;
        }
        let mut is_in_use = false;
        for (id, action) in actions.into_iter().rev() {
            match action.undo() {
                Ok(Undone::Done) => {
                    self.undone(id)?;
                    settled.push(Leftover { owner: owner.clone(), action });
                }
                Ok(Undone::InUse) => is_in_use = true,
                Err(source) => {
                    failure = Some(LifetimeError::Undo { what: action.to_string(), source });
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if is_in_use => Ok(settled),
            None => self.remove().map(|()| settled),
        }
    }

    fn remove(self) -> Result<(), LifetimeError> {
        // Removed while locked, so that no other owner's journal is removed. The directory stays: it may
        // be mounted in containers, whose journals would be lost with it.
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LifetimeError::Journal { path: self.path, source })
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, line: &Line) -> Result<(), LifetimeError> {
        let fail = |source| LifetimeError::Journal { path: self.path.clone(), source };
        let mut text = serde_json::to_vec(line).map_err(|error| fail(error.into()))?;
        text.push(b'\n');
        self.file.seek(io::SeekFrom::End(0)).map_err(fail)?;
        self.file.write_all(&text).map_err(fail)
    }
}

fn parse(text: &str) -> Contents {
    let mut contents = Contents::default();
    for line in text.lines() {
        // Only a line truncated by the owner's death is unreadable.
        match serde_json::from_str(line) {
            Ok(Line::Owner(owner)) => {
                contents.owner = Some(owner);
                contents.faulted = None;
                contents.is_ending = false;
            }
            Ok(Line::Faults(faulted)) => contents.faulted = Some(faulted),
            Ok(Line::Do { id, action }) => {
                match contents.actions.iter_mut().find(|(done, _)| *done == id) {
                    Some((_, before)) => *before = action,
                    None => contents.actions.push((id, action)),
                }
            }
            Ok(Line::Ending) => contents.is_ending = true,
            Ok(Line::Undone { id }) => contents.actions.retain(|(done, _)| *done != id),
            Err(error) => tracing::debug!(%error, line, "skipping a line of the journal"),
        }
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str) -> Action {
        Action::MakeCgroup { path: path.into(), home: "/".into(), inode: None }
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| serde_json::to_string(line).expect("plain data") + "\n").collect()
    }

    #[test]
    fn what_was_undone_is_not_undone_again() {
        let text = text(&[
            Line::Do { id: 0, action: made("/a") },
            Line::Do { id: 1, action: made("/b") },
            Line::Undone { id: 0 },
        ]);
        assert_eq!(parse(&text).actions, [(1, made("/b"))]);
    }

    #[test]
    fn a_leftover_is_told_with_whose_it_was_and_how_things_are_now() {
        let owner = Owner {
            pid: 42,
            ticks: 7,
            started: "2026-11-30T12:34:56.789Z".into(),
            command: ["injector", "run", "--loss", "1%", "--", "a"].map(Into::into).into(),
        };
        let (owner, action) = (Some(owner), made("/a"));
        assert_eq!(
            Leftover { owner, action: action.clone() }.to_string(),
            "the cgroup /a is removed (left by injector 42, started at 2026-11-30 12:34:56 UTC: injector run --loss 1% \
             -- a)"
        );
        assert_eq!(Leftover { owner: None, action }.to_string(), "the cgroup /a is removed");
    }

    #[test]
    fn what_an_action_turned_out_to_be_takes_its_place() {
        let known = Action::MakeCgroup { path: "/a".into(), home: "/".into(), inode: Some(7) };
        let text = text(&[
            Line::Do { id: 0, action: made("/a") },
            Line::Do { id: 1, action: made("/b") },
            Line::Do { id: 0, action: known.clone() },
        ]);
        assert_eq!(parse(&text).actions, [(0, known), (1, made("/b"))]);
    }

    #[test]
    fn what_others_left_is_not_ending_with_the_next_owner() {
        let owner = Owner { pid: 1, ticks: 2, started: String::new(), command: Vec::new() };
        let mut lines = vec![Line::Do { id: 4, action: made("/a") }, Line::Ending];
        assert!(parse(&text(&lines)).is_ending);
        lines.push(Line::Owner(owner));
        let contents = parse(&text(&lines));
        assert!(!contents.is_ending && contents.is_free());
        assert_eq!(contents.actions, [(4, made("/a"))]);
    }

    #[test]
    fn a_line_that_was_cut_off_anywhere_hides_no_other() {
        let whole = text(&[Line::Do { id: 0, action: made("/a") }]);
        let last = text(&[Line::Do { id: 1, action: made("/b") }]);
        for cut in 0..last.len() - 1 {
            let contents = parse(&format!("{whole}{}", &last[..cut]));
            assert_eq!(contents.actions[0], (0, made("/a")), "{cut}");
        }
    }
}
