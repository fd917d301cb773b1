//! The user that the command of `run` runs as.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist, setgroups, setresgid, setresuid};

/// A user with all its groups.
pub struct RunAs {
    user: User,
    groups: Vec<Gid>,
}

impl RunAs {
    /// Finds a user by name or UID.
    pub fn find(name: &str) -> Result<Self> {
        let found = match name.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(name),
        };
        let found = found.with_context(|| format!("cannot look up the user {name}"))?;
        let Some(user) = found else { bail!("--user: there is no user {name}") };
        // Names in the database contain no NUL.
        let name = std::ffi::CString::new(user.name.as_bytes())?;
        let groups = getgrouplist(&name, user.gid)
            .with_context(|| format!("cannot look up the groups of {}", user.name))?;
        Ok(Self { user, groups })
    }

    /// Name of the user.
    pub fn name(&self) -> &str {
        &self.user.name
    }

    /// The environment variables that name the user.
    pub fn environment(&self) -> [(&'static str, &OsStr); 4] {
        let name = OsStr::new(&self.user.name);
        [
            ("USER", name),
            ("LOGNAME", name),
            ("HOME", self.user.dir.as_os_str()),
            ("SHELL", self.user.shell.as_os_str()),
        ]
    }

    /// Makes the calling process one of the user's, without capabilities. Call it between fork and exec.
    pub fn assume(&self) -> io::Result<()> {
        let User { uid, gid, .. } = self.user;
        setgroups(&self.groups)?;
        setresgid(gid, gid, gid)?;
        Ok(setresuid(uid, uid, uid)?)
    }
}

/// The user who ran sudo to run injector as root.
pub fn who_ran_sudo() -> Option<OsString> {
    let is_root = |user: &OsString| user == "root";
    env::var_os("SUDO_USER").filter(|user| geteuid().is_root() && !is_root(user))
}
