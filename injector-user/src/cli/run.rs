//! `injector run`: runs a new command under faults.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result};
use clap::Args;
use injector_common::{packet::protocol, rule::RULE_CLAMPS};
use nix::{sys::signal::SigSet, unistd::chdir};
use tokio::process::{Child, Command};

use super::{
    FAILED,
    args::{FaultArgs, SessionArgs},
    report::{Reporter, Stream},
    session::{self, End, Plan, RequestedFaults, Session},
    signals::Signals,
    user::RunAs,
};
use crate::{
    kernel::{limits, mount::Home, netns::Netns},
    lifetime::{
        action::Action,
        instance::{Instance, SharedInstance},
    },
    output,
    spec::{packet::mtu::Mtu, rule::Rule},
    target::{
        Target,
        cgroup::{Cgroup, Hierarchy},
        peers::Addresses,
    },
};

/// Exit codes of the shell for a command that does not exist or cannot be executed (POSIX, 2.8.2).
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Run a command under faults that affect only its processes
///
/// The command runs in a cgroup of its own. Its packets are faulted on every interface of its network namespace,
/// including loopback. The faults end with the command. Reports go to standard error, or to --output-file.
///
/// The command runs as the user that injector runs as, which is root under sudo; --user changes that.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: injector run --loss 20% --remote 127.0.0.1/32 -- ping -c 20 127.0.0.1")]
pub struct RunArgs {
    #[command(flatten)]
    faults: FaultArgs,

    #[command(flatten)]
    session: SessionArgs,

    /// Run CMD in this network namespace
    ///
    /// A name of `ip netns`, or a path such as /proc/4321/ns/net. Only the network namespace changes: /sys and the
    /// files in /etc/netns stay those of the host, as with nsenter --net.
    #[arg(long, value_name = "NAME", help_heading = "Command")]
    netns: Option<PathBuf>,

    /// Run CMD as this user, by name or UID
    ///
    /// With the groups of the user, without capabilities, and with USER, LOGNAME, HOME and SHELL set. The rest of the
    /// environment stays.
    #[arg(long, value_name = "USER", help_heading = "Command")]
    user: Option<String>,

    /// Run CMD in this directory
    ///
    /// A relative path of CMD starts there.
    #[arg(long, value_name = "DIR", help_heading = "Command")]
    cwd: Option<PathBuf>,

    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command and returns its exit code.
pub fn run(args: &RunArgs, debug: bool) -> Result<ExitCode> {
    let asked = RequestedFaults::read(&args.faults, &args.session, debug)?;
    let surroundings = Surroundings::of(args)?;
    let instance = session::start_instance()?;
    let asked = asked.resolve()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Opening a named pipe blocks until it has a reader. Ctrl-C must still work, so signals are
    // taken afterwards.
    let reporter = Reporter::new(&args.session, Stream::Stderr)?;
    let reports = reporter.writer();
    let code = runtime.block_on(under_faults(args, asked, surroundings, &instance, reporter));
    let code = code.and_then(|code| {
        instance.lock().end()?;
        Ok(code)
    });
    // Write errors were reported before, and do not affect the command's exit code.
    let _ = reports.finish();
    code
}

/// Where the command runs, and as whom.
struct Surroundings {
    /// The network namespace, if it is not that of injector.
    netns: Option<Netns>,
    /// The user, if it is not that of injector.
    user: Option<RunAs>,
    /// The directory, if it is not that of injector.
    cwd: Option<CString>,
}

impl Surroundings {
    fn of(args: &RunArgs) -> Result<Self> {
        let cwd = args.cwd.as_deref().map(check_directory).transpose()?;
        Ok(Self {
            netns: args.netns.as_deref().map(Netns::find).transpose()?,
            user: args.user.as_deref().map(RunAs::find).transpose()?,
            cwd,
        })
    }

    /// Changes the calling process. Call it between fork and exec.
    fn enter(&self) -> io::Result<()> {
        if let Some(netns) = &self.netns {
            netns.enter()?;
        }
        if let Some(user) = &self.user {
            user.assume()?;
        }
        // The user must have access.
        Ok(self.cwd.as_deref().map_or(Ok(()), chdir)?)
    }
}

/// Checks that a directory is there.
fn check_directory(path: &Path) -> Result<CString> {
    let found = fs::metadata(path).and_then(|found| {
        if found.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    });
    found.with_context(|| format!("--cwd: cannot use {}", path.display()))?;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

async fn under_faults(
    args: &RunArgs,
    mut asked: RequestedFaults,
    surroundings: Surroundings,
    instance: &SharedInstance,
    reporter: Reporter,
) -> Result<ExitCode> {
    let mut signals = Signals::take().context("cannot take signals")?;
    let files = limits::files().context("cannot read the limit of open files")?;
    let (cgroup, made) = make_cgroup(&mut instance.lock())?;
    let procs = fs::OpenOptions::new()
        .write(true)
        .open(cgroup.path.join("cgroup.procs"))
        .with_context(|| format!("cannot use the cgroup {}", cgroup.path.display()))?;
    let netns = surroundings.netns.clone().map_or_else(Netns::current, Ok)?;
    let target = Target::of_command(cgroup, netns);
    let addresses = asked.options.peers.addresses();
    let loopback_mtu = limit_loopback_packets(&mut asked.faults.rules, &addresses, &target)?;
    let title = session::words(&args.command);
    // Without a time limit, the faults end with the command.
    asked.options.outlived = args.session.lasts().is_some();
    let user = surroundings.user.as_ref().map(|user| user.name().to_owned());
    let plan = Plan { asked, target, title, made: Some(made), user, loopback_mtu };
    let mut session =
        Session::start(instance.clone(), &args.session, &args.faults, plan, reporter)?;
    let spawn = || spawn(&args.command, surroundings, &procs, signals.mask_before(), files);
    let spawned = instance.lock().expedited(|_| spawn());
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let command = args.command[0].to_string_lossy();
            output::complain(&format!("cannot run {command}: {error}"));
            let missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if missing { NOT_FOUND } else { NOT_EXECUTABLE }));
        }
    };
    let end = match session.watch(&mut signals, Some(&mut child)).await {
        Ok(end) => end,
        Err(error) => {
            session.fail(&error);
            // The command continues without faults; signals are still forwarded to it.
            let status = session::outlast(&mut signals, &mut child).await?;
            return if status.success() { Err(error) } else { Ok(ExitCode::from(code(status))) };
        }
    };
    let own = session.end()?;
    Ok(match end {
        End::Command(status) if own == ExitCode::SUCCESS => ExitCode::from(code(status)),
        // The command's exit code is more informative than the loss of its cgroup.
        End::Command(status) if own == ExitCode::from(FAILED) && !status.success() => {
            ExitCode::from(code(status))
        }
        _ => own,
    })
}

/// Limits the packets of new connections to those of Ethernet for rules that act on wire packets, and
/// on loopback alone, where TCP sends packets of up to 64 KiB. Returns the limit if it applies to any
/// rule.
fn limit_loopback_packets(
    rules: &mut [Rule],
    addresses: &Addresses,
    target: &Target,
) -> Result<Option<Mtu>> {
    let places = target.places()?;
    let mut interfaces = places.iter().flat_map(|place| &place.interfaces);
    let is_loopback_alone = interfaces.all(|interface| interface.is_loopback);
    let mut limit = None;
    for Rule { matching, impairment, .. } in rules {
        if impairment.rule.flags & RULE_CLAMPS == 0
            && impairment.acts_on_wire_packets()
            && matching.may_match(protocol::TCP)
            && (is_loopback_alone || matching.is_of_loopback(addresses))
        {
            Mtu::ETHERNET.clamp(&mut impairment.rule);
            limit = Some(Mtu::ETHERNET);
        }
    }
    Ok(limit)
}

/// Creates the command's cgroup inside injector's own, so that the same resource limits apply.
///
/// Returns the cgroup and the number of its journal entry.
fn make_cgroup(instance: &mut Instance) -> Result<(Cgroup, u32)> {
    let hierarchy = Hierarchy::find()?;
    let home = hierarchy.path_of_self()?;
    // The PID only informs: processes in other PID namespaces may have the same one. The name is
    // journaled before the cgroup is created, so that cleanup can attribute it. The inode is
    // journaled once it is known.
    let name = format!("injector-{}-{:016x}", std::process::id(), rand::random::<u64>());
    let path = home.join(name);
    let made = |inode| Action::MakeCgroup { path: path.clone(), home: home.clone(), inode };
    let action = instance.perform(made(None), || fs::create_dir(&path))?;
    let cgroup = hierarchy.open(&path)?;
    instance.revise(action, made(Some(cgroup.id)))?;
    Ok((cgroup, action))
}

/// Starts the command in the cgroup that `procs` belongs to, with the original limit of open files.
fn spawn(
    command: &[OsString],
    surroundings: Surroundings,
    procs: &fs::File,
    mask: SigSet,
    files: limits::Files,
) -> io::Result<Child> {
    let (procs, home) = (procs.try_clone()?, Home::left());
    let mut builder = Command::new(&command[0]);
    builder.args(&command[1..]);
    if let Some(user) = &surroundings.user {
        builder.envs(user.environment());
    }
    // SAFETY: setting the mask, changing namespaces, the user and the directory, and writing to a file descriptor
    // are async-signal-safe.
    unsafe {
        builder.pre_exec(move || {
            mask.thread_set_mask()?;
            limits::set_files(files)?;
            home.map_or(Ok(()), Home::enter)?;
            // "0" means the writing process, so it sends no packet from outside the cgroup.
            io::Write::write_all(&mut &procs, b"0")?;
            surroundings.enter()
        });
    }
    builder.spawn()
}

/// The exit code of the shell for this status.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}
