//! `injector inject`: applies faults to existing targets.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

#[cfg(feature = "agent")]
use super::remote::{self, AgentOptions};
use super::{
    args::{FaultArgs, SessionArgs},
    report::{Reporter, Stream},
    session::{self, Plan, RequestedFaults, Session},
    signals::Signals,
};
use crate::{
    fault::network::HookChoice,
    report::TargetReport,
    spec::{SpecError, rule::check_for_xdp, target::TargetSpec},
    target::{Target, Whose},
    words::plural,
};

/// Fault an existing target until a deadline or a signal
///
/// The faults end after --for, or on SIGINT or SIGTERM.
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

    #[cfg(feature = "agent")]
    #[command(flatten)]
    agent: AgentOptions,

    /// Fault received packets at the XDP hook
    ///
    /// The XDP hook runs before the kernel allocates a packet buffer, so it costs least. It supports loss and
    /// corruption of a whole host, network namespace or interface.
    #[arg(long)]
    #[cfg_attr(feature = "agent", arg(conflicts_with = "agent"))]
    xdp: bool,

    /// Hook for the eBPF programs
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "tcx|clsact",
        hide_possible_values = true,
        conflicts_with = "xdp"
    )]
    #[cfg_attr(feature = "agent", arg(conflicts_with = "agent"))]
    hook: HookChoice,

    /// Spare SSH, this shell's connections, and lo
    ///
    /// Excludes TCP port 22, the connections of the shell that started this command, and loopback unless --interface
    /// names it. This is the default for --host and --interface. For pods, excludes traffic with their node instead, such
    /// as the kubelet's probes, which is their default.
    #[arg(long, overrides_with = "no_protect")]
    protect: bool,

    /// Exclude nothing from the faults
    #[arg(long)]
    no_protect: bool,
}

/// Applies the faults to the target.
pub fn run(args: &InjectArgs, debug: bool) -> Result<ExitCode> {
    let protect = match (args.protect, args.no_protect) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    #[cfg(feature = "agent")]
    if let Some(at) = &args.agent.agent {
        let request = remote::request(&args.target, &args.faults, &args.session, protect)?;
        check_end(args)?;
        let client = args.agent.client(at)?;
        return remote::run(client, &request, &args.session, &title(&args.target, None));
    }
    let mut asked = RequestedFaults::read(&args.faults, &args.session, debug)?;
    args.target.check(args.xdp).map_err(SpecError::from)?;
    if asked.faults.clock.is_some() {
        args.target.check_for_clocks().map_err(SpecError::from)?;
    }
    if args.xdp {
        check_for_xdp(&mut asked.faults.rules).map_err(SpecError::from)?;
    }
    check_end(args)?;
    let instance = session::start_instance()?;
    let mut asked = asked.resolve()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Opening a named pipe blocks until it has a reader. Ctrl-C must still work, so signals are
    // taken afterwards.
    let reporter = Reporter::new(&args.session, Stream::Stdout)?;
    let reports = reporter.writer();
    let code = runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take signals")?;
        let protect = TargetSpec { protect, ..args.target.clone() }.protection();
        let target = Target::resolve(&args.target, protect.operator)?;
        asked.options.outlived = true;
        asked.options.network.protect = protect;
        asked.options.network.hook = if args.xdp { HookChoice::Xdp } else { args.hook };
        let title = title(&args.target, Some(&target));
        let spec = TargetReport::from(&args.target);
        let plan = Plan { asked, target, spec, title, made: None, user: None, loopback_mtu: None };
        let mut session =
            Session::start(instance.clone(), &args.session, &args.faults, plan, reporter)?;
        session.watch(&mut signals, None).await?;
        session.end(None)
    });
    let code = code.and_then(|code| {
        instance.lock().end()?;
        Ok(code)
    });
    session::finish(&reports, code)
}

/// Requires an end for faults of all traffic at a place, because they are easily forgotten.
fn check_end(args: &InjectArgs) -> Result<(), SpecError> {
    if args.session.duration.is_some() {
        return Ok(());
    }
    match args.target.kinds().filter(|kind| kind.is_wide()).last() {
        Some(kind) => Err(SpecError::NoEnd(kind.name)),
        None => Ok(()),
    }
}

/// Display name of the target: as resolved, or as requested if an agent resolves it.
fn title(spec: &TargetSpec, found: Option<&Target>) -> String {
    let whose = match found {
        Some(target) => vec![
            target.title().map(str::to_owned),
            match &target.whose {
                Whose::All => None,
                Whose::Cgroup(cgroup) => {
                    let processes = plural(cgroup.processes().len() as u64, "process");
                    Some(format!("cgroup {} ({processes})", cgroup.path.display()))
                }
                Whose::Processes(set) => Some(set.title()),
            },
        ],
        None => return spec.title(),
    };
    whose.into_iter().flatten().chain(spec.titles(false)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_a_title() {
        let netns = || Some("left".into());
        for (spec, expected) in [
            (TargetSpec { cgroup: Some("/a".into()), ..TargetSpec::default() }, "cgroup /a"),
            (
                TargetSpec { pid: vec![1], netns: netns(), ..TargetSpec::default() },
                "process 1, network namespace left",
            ),
            (
                TargetSpec { container: Some("web".into()), ..TargetSpec::default() },
                "container web",
            ),
            (
                TargetSpec { unit: "nginx".parse().ok(), ..TargetSpec::default() },
                "unit nginx.service",
            ),
            (
                TargetSpec { pod: "default/web-0".parse().ok(), ..TargetSpec::default() },
                "pod default/web-0",
            ),
            (
                TargetSpec {
                    pods: "shop/app.kubernetes.io/name=cart,tier in (web)".parse().ok(),
                    ..TargetSpec::default()
                },
                "pods shop/app.kubernetes.io/name=cart,tier in (web)",
            ),
            (
                TargetSpec {
                    netns: netns(),
                    interface: vec!["a".into(), "b".into()],
                    ..TargetSpec::default()
                },
                "network namespace left, interface a, b",
            ),
            (TargetSpec { host: true, ..TargetSpec::default() }, "host"),
        ] {
            assert_eq!(title(&spec, None), expected);
        }
    }
}
