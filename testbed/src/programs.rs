//! Third-party programs that tests run. `scripts/setup-test` installs them. A missing one is a failure.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown},
};

use crate::{Host, Process, TIMEOUT, TestCgroup, unique};

/// The path of a program of a Debian package. Panics if it is missing.
#[track_caller]
pub fn find(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: scripts/setup-test installs it ({package})"))
}

/// A file or directory that is removed at the end.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ =
            if self.0.is_dir() { fs::remove_dir_all(&self.0) } else { fs::remove_file(&self.0) };
    }
}

/// Makes redis-server in a directory.
#[must_use]
pub fn redis_server(folder: &Path) -> PathBuf {
    // Debian has one binary for both, named redis-server only in a package that also starts it.
    let program = folder.join("redis-server");
    symlink(find("redis-check-rdb", "redis-tools"), &program).expect("it can be made");
    program
}

/// A `PostgreSQL` server, and its files.
#[derive(Debug)]
pub struct Postgres {
    /// The directory of its programs.
    pub programs: PathBuf,
    folder: Scratch,
    /// The server, which has a process for each session.
    pub server: Child,
}

impl Postgres {
    /// Starts a server that everybody may use, with these settings.
    #[must_use]
    pub fn start(host: &Host, cgroup: Option<&TestCgroup>, settings: &[&str]) -> Self {
        let programs = Self::programs();
        // It refuses to run as root, but only root may read a test's directory.
        let user = User::from_name("postgres").ok().flatten();
        let user = user.expect("its package has made a user postgres");
        let folder = Scratch(env::temp_dir().join(format!("injector-postgres-{}", unique())));
        fs::create_dir(&folder.0).expect("it can be made");
        chown(&folder.0, Some(user.uid), Some(user.gid)).expect("we are root");
        let become_it = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];
        let data = folder.0.join("data");
        let made = Command::new("setpriv")
            .args(become_it)
            .arg(programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "--pgdata"])
            .arg(&data)
            .current_dir(&folder.0)
            .output()
            .expect("it can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let anybody = "host all all all trust\n";
        let mut clients = fs::read_to_string(data.join("pg_hba.conf")).expect("it was made");
        clients.push_str(anybody);
        fs::write(data.join("pg_hba.conf"), clients).expect("we are root");
        let mut command = host.command("setpriv", cgroup);
        command.args(become_it).arg(programs.join("postgres"));
        for setting in settings.iter().chain(&["fsync=off"]) {
            command.args(["-c", setting]);
        }
        command.arg("-k").arg(&folder.0).arg("-D").arg(&data);
        let server = command.current_dir(&folder.0).stderr(Stdio::null()).spawn();
        let postgres = Self { programs, folder, server: server.expect("it can be run") };
        let end = Instant::now() + TIMEOUT;
        while !postgres.is_ready() {
            assert!(Instant::now() < end, "PostgreSQL does not start");
            thread::sleep(Duration::from_millis(50));
        }
        postgres
    }

    /// The newest installed version.
    fn programs() -> PathBuf {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let folders = versions.map(|version| version.path().join("bin"));
        let newest = folders.filter(|path| path.join("initdb").exists()).max();
        newest.expect("PostgreSQL is missing: scripts/setup-test installs it (postgresql)")
    }

    /// A client, by way of a socket of its directory.
    #[must_use]
    pub fn psql(&self) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(&self.folder.0);
        psql
    }

    fn is_ready(&self) -> bool {
        let output = self.psql().args(["-c", "SELECT 1"]).output().expect("it can be run");
        output.status.success()
    }

    /// A session, which has its own server process.
    #[must_use]
    pub fn session(&self) -> Process {
        Process::start(self.psql())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown, but with its shared memory released.
        let _ = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGQUIT);
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end && matches!(self.server.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
