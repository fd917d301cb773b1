//! Unnamed network namespaces: the kernel removes each with its last file descriptor and process, so
//! that nothing is left behind, even after SIGKILL.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};

/// A new network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Creates a namespace with its loopback up.
    pub fn new() -> Result<Self> {
        let make = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let namespace = Self { file: in_thread(make)? };
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The path by which other processes can open the namespace.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` in a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace")?;
            work()
        })
    }

    /// A command that runs inside the namespace and is killed with the thread that starts it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let file = self.file.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: setns and prctl are bare system calls.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?)
            });
        }
        Ok(command)
    }

    /// Runs `ip` with these arguments.
    pub fn ip<const N: usize>(&self, arguments: [&str; N]) -> Result<()> {
        let status = self.command("ip")?.args(arguments).status().context("cannot run ip")?;
        ensure!(status.success(), "ip {} failed", arguments.join(" "));
        Ok(())
    }
}

/// Runs `work` in a new thread, so that the caller's stays in its namespace.
pub fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow!("a thread panicked"))?)
}
