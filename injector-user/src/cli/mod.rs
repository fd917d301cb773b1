//! The command line: only parsing and printing.

#[cfg(feature = "agent")]
mod agent;
mod apply;
mod args;
mod cleanup;
#[cfg(feature = "kubernetes")]
mod crd;
#[cfg(all(test, feature = "clock", feature = "kubernetes"))]
mod docs_tests;
mod doctor;
mod event;
#[cfg(feature = "agent")]
mod health;
mod inject;
mod list;
mod man;
mod page;
mod preflight;
mod privileges;
mod profiles;
mod reload;
#[cfg(feature = "agent")]
mod remote;
mod report;
mod run;
#[cfg(feature = "agent")]
pub mod schema;
mod session;
mod signals;
mod tips;
mod trial;
mod user;

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{output, spec::SpecError};

/// A failure at run time.
const FAILED: u8 = 1;
/// A usage error.
const USAGE: u8 = 2;
/// `--require-match` was given, and nothing matched.
const NOTHING_MATCHED: u8 = 3;

/// Fault injector for Linux: packets, clocks and processes
///
/// Injects faults into a command, a cgroup, a container, a pod, a network namespace or a host. All faults end with
/// injector, even if it is killed.
#[derive(Parser)]
#[command(name = "injector", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Exit codes:
  0    done
  1    failed; nothing is half-applied
  2    wrong usage; nothing was touched
  3    nothing matched, with --require-match
  run  exits with CMD's code: 128+n if signal n ended it, 126 if it cannot be
       executed, 127 if it is not found

Environment:
  INJECTOR_LOG  filter of diagnostics on standard error, such as `debug` or
                `injector_user::kernel=debug` (tracing-subscriber's EnvFilter)")]
struct Cli {
    /// Enable debug logging
    ///
    /// Includes messages of the eBPF programs. They go to standard error.
    #[arg(long, global = true)]
    debug: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in the whole process")]
enum Command {
    Run(run::RunArgs),
    Inject(inject::InjectArgs),
    Apply(apply::ApplyArgs),
    #[cfg(feature = "agent")]
    Agent(agent::AgentArgs),
    Report(page::ReportArgs),
    Doctor(doctor::DoctorArgs),
    List(list::ListArgs),
    Profiles(profiles::ProfilesArgs),
    Cleanup(cleanup::CleanupArgs),
    Completions(man::CompletionsArgs),
    Man(man::ManArgs),
    #[cfg(feature = "kubernetes")]
    #[command(hide = true)]
    Crd(crd::CrdArgs),
    #[command(hide = true, name = trial::SUBCOMMAND)]
    Trial(trial::TrialArgs),
}

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let code = match preflight::check_stack() {
        Ok(()) => match Cli::try_parse() {
            Ok(cli) => carry_out(cli),
            Err(error) => help(&tips::add(error, &Cli::command(), env::args_os())),
        },
        Err(error) => failed(&error),
    };
    output::finish_stderr();
    code
}

fn carry_out(cli: Cli) -> ExitCode {
    start_log(cli.debug);
    let result = preflight::check().and_then(|()| match cli.command {
        Command::Run(args) => run::run(&args, cli.debug),
        Command::Inject(args) => inject::run(&args, cli.debug),
        Command::Apply(args) => apply::run(&args, cli.debug),
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(&args, cli.debug),
        Command::Report(args) => page::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::List(args) => list::run(&args),
        Command::Profiles(args) => profiles::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Completions(args) => man::completions(&args, &mut Cli::command()),
        Command::Man(args) => man::man(&args, Cli::command()),
        #[cfg(feature = "kubernetes")]
        Command::Crd(args) => crd::run(&args),
        Command::Trial(args) => trial::run(&args),
    });
    result.unwrap_or_else(|error| failed(&error))
}

/// Reports an error and returns the exit code.
fn failed(error: &anyhow::Error) -> ExitCode {
    output::complain(&format!("{error:#}"));
    let is_usage = error.is::<SpecError>();
    #[cfg(feature = "agent")]
    let is_usage = is_usage || remote::is_usage(error);
    ExitCode::from(if is_usage { USAGE } else { FAILED })
}

/// Prints help, the version, or a usage error.
fn help(error: &clap::Error) -> ExitCode {
    let printed = error.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(failure) if !error.use_stderr() && failure.kind() != io::ErrorKind::BrokenPipe => {
            output::complain(&format!("cannot write to {}: {failure}", output::STDOUT));
            ExitCode::from(FAILED)
        }
        _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED)),
    }
}

/// Sends diagnostics to standard error. `INJECTOR_LOG` takes `tracing-subscriber` filters.
fn start_log(debug: bool) {
    let default = if debug { "debug" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("INJECTOR_LOG")
        .with_default_directive(default.parse().unwrap_or_default())
        .from_env_lossy()
        // The netlink crates log many irrelevant messages.
        .add_directive("netlink_proto=warn".parse().unwrap_or_default())
        // Callers report the errors of the Kubernetes crates.
        .add_directive("kube_client=off".parse().unwrap_or_default())
        .add_directive("kube_runtime=off".parse().unwrap_or_default());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Diagnostics)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .init();
}
