//! `injector inject`: faults for what is there already.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    args::{FaultArgs, SessionArgs},
    report::{Reporter, Stream},
    session::{self, Asked, Plan, Session},
    signals::Signals,
};
use crate::{
    fault::network::HookChoice,
    spec::{SpecError, rule::check_for_xdp, target::TargetSpec},
    target::Target,
};

/// Fault an existing target until --for is over, or SIGINT or SIGTERM arrives
#[derive(Args, Debug)]
#[command(after_help = "\
Example: injector inject --cgroup /system.slice/postgresql.service --loss 1% --local-port 5432 --for 30s")]
pub struct InjectArgs {
    #[command(flatten)]
    target: TargetSpec,

    #[command(flatten)]
    faults: FaultArgs,

    #[command(flatten)]
    session: SessionArgs,

    /// Lose and corrupt received packets at the XDP hook, before the kernel makes buffers of them:
    /// cheapest, but for a whole host, namespace or interface only
    #[arg(long)]
    xdp: bool,

    /// Where to attach otherwise
    #[arg(long, value_enum, default_value_t, value_name = "HOOK", conflicts_with = "xdp")]
    hook: HookChoice,

    /// Leave TCP port 22, the connections of the shell that started this, and loopback alone unless it is
    /// named by --interface [default for --host and --interface]
    #[arg(long, overrides_with = "no_protect")]
    protect: bool,

    /// Spare nothing
    #[arg(long)]
    no_protect: bool,
}

/// Faults the target.
pub fn run(args: &InjectArgs, verbose: bool) -> Result<ExitCode> {
    let asked = Asked::read(&args.faults, &args.session)?;
    args.target.check(args.xdp).map_err(SpecError::from)?;
    if args.xdp {
        check_for_xdp(&asked.rules).map_err(SpecError::from)?;
    }
    let mut instance = session::start_instance()?;
    let asked = asked.resolve()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take signals")?;
        let reporter = Reporter::new(&args.session, Stream::Stdout)?;
        let wide = args.target.host || !args.target.interface.is_empty();
        let protect = args.protect || (wide && !args.no_protect);
        let target = Target::resolve(&args.target, protect)?;
        let options = session::options(&args.session, &instance, asked.seed, verbose);
        let hook = if args.xdp { HookChoice::Xdp } else { args.hook };
        let options = crate::fault::network::Options { protect, hook, ..options };
        let title = title(&args.target, &target);
        let plan = Plan { asked, target, title, options, outlived: true };
        let mut session =
            Session::start(&mut instance, &args.session, &args.faults, plan, reporter)?;
        session.watch(&mut signals, None).await?;
        session.end()
    })?;
    instance.end()?;
    Ok(code)
}

/// What is faulted, for people.
fn title(spec: &TargetSpec, target: &Target) -> String {
    let mut parts = Vec::new();
    if let Some(cgroup) = &target.cgroup {
        let count = cgroup.processes().len();
        parts.push(format!("cgroup {} ({count} processes)", cgroup.path.display()));
    }
    if let Some(netns) = &spec.netns {
        parts.push(format!("network namespace {}", netns.display()));
    }
    if !spec.interface.is_empty() {
        parts.push(format!("interface {}", spec.interface.join(", ")));
    }
    if spec.host {
        parts.push("host".into());
    }
    parts.join(", ")
}
