//! `injector agent`: serves faults through an API.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;
use tokio::sync::watch;

use super::{session, signals::Signals};
use crate::{
    agent::{
        Limits, SOCKET,
        access::Access,
        audit::Audit,
        board::Board,
        keeper::Running,
        routes::{self, Agent, HUNG, MAX_CHECKS},
        server::{self, Socket, Tcp},
    },
    kernel::memory,
    output::{self, Importance, Writer},
};
#[cfg(feature = "kubernetes")]
use crate::{
    fault::network::hold,
    kernel::hook,
    kubernetes::{self, Kubernetes},
    spec::value::HumanDuration,
};

/// Maximum number of threads that block: those that check requests, and some for pods.
const MAX_THREADS: usize = MAX_CHECKS + 4;

/// Idle time after which such a thread exits, to free its memory.
const IDLE: Duration = Duration::from_secs(1);

/// Serve an HTTP API that starts, watches and ends faults of this host
///
/// The API is HTTP and JSON over a Unix socket that only root can open, and over TCP with --listen. Each fault ends at
/// its deadline, or when its client stops renewing it. All faults end with the agent. GET /openapi.json describes the
/// API; see docs/agent.md.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: injector agent --listen 0.0.0.0:7440 --tls-cert tls.crt --tls-key tls.key --token-file tokens")]
pub struct AgentArgs {
    /// Unix socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,

    /// Also serve this TCP address
    ///
    /// Addresses other than loopback require --tls-cert, --tls-key and --token-file.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Certificate chain for --listen, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_key"])]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Tokens of the clients that may use TCP
    ///
    /// The file has lines of the form NAME:TOKEN and must be readable only by its owner.
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,

    /// Write the audit log to this file
    ///
    /// The log has one JSON object per request. It goes to standard error by default.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,

    /// Log read-only requests as well
    #[arg(long)]
    audit_reads: bool,

    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Maximum number of active faults
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_faults: usize,

    /// Maximum number of open connections
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_connections: usize,

    /// Maximum size of a request
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    max_body: usize,
}

/// The cluster whose faults are carried out too.
#[cfg(feature = "kubernetes")]
#[derive(Args, Debug)]
struct ClusterArgs {
    /// Apply the cluster's `FaultInjection` resources
    ///
    /// They act on the pods of this node. The cluster is taken from KUBECONFIG, ~/.kube/config, or the pod's service
    /// account; see docs/kubernetes.md.
    #[arg(long, requires = "node", help_heading = "Kubernetes")]
    kubernetes: bool,

    /// Name of this node
    #[arg(
        long,
        value_name = "NAME",
        env = "NODE_NAME",
        hide_env_values = true,
        help_heading = "Kubernetes"
    )]
    node: Option<String>,

    /// Namespace of the leases
    ///
    /// Each agent renews a Lease, by which other agents see that it is alive. The default is the namespace of the
    /// agent's pod.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        hide_env_values = true,
        help_heading = "Kubernetes"
    )]
    lease_namespace: Option<String>,

    /// API server outage to end faults
    ///
    /// Faults of the cluster end when its API server was unreachable for T, which is 3s to 10m.
    #[arg(long, value_name = "T", default_value = "30s", help_heading = "Kubernetes")]
    api_patience: HumanDuration,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &AgentArgs, debug: bool) -> Result<ExitCode> {
    let access = match &args.token_file {
        Some(path) => Access::read(path)?,
        None => Access::default(),
    };
    // Must run before other threads start.
    memory::share();
    let owner = session::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_THREADS)
        .thread_keep_alive(IDLE)
        .build()?;
    let audit = Audit::open(args.audit_log.as_deref(), args.audit_reads)?;
    let audited = audit.writer();
    let reports = Writer::stdout().context("cannot report")?;
    let served = runtime.block_on(async {
        // Must run before other threads start, so that all of them inherit the blocked signals.
        let mut signals = Signals::take().context("cannot take signals")?;
        let socket = Socket::bind(&args.socket)?;
        let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
        let tcp = match args.listen {
            Some(address) => Some(Tcp::bind(address, tls, args.token_file.is_some()).await?),
            None => None,
        };
        let board = Arc::new(Board::default());
        let log_level = if debug { session::DEBUG_LOG } else { 0 };
        let keeper = Running::start(owner, board.clone(), args.max_faults, log_level)?;
        let limits = Limits {
            connections: args.max_connections,
            body: args.max_body,
            request: Duration::from_secs(30),
        };
        let (end, ending) = watch::channel(false);
        let agent =
            Agent::new(board.clone(), keeper.handle(), access, audit, limits, ending.clone());
        let agent = Arc::new(agent);
        say_where(&reports, &args.socket, tcp.as_ref(), args)?;
        let router = routes::router(agent.clone());
        #[cfg(feature = "kubernetes")]
        let cluster = join_cluster(&args.cluster, &agent, &reports).await?;
        let server = tokio::spawn(server::serve(agent, router, socket, tcp, ending));
        notify(&[NotifyState::Ready]);
        wait(&mut signals, &board).await?;
        notify(&[NotifyState::Stopping]);
        // End faults before connections, so that watchers are told of the end.
        #[cfg(feature = "kubernetes")]
        let farewell = match cluster {
            Some(cluster) => Some(cluster.end().await),
            None => None,
        };
        let stopped = tokio::task::spawn_blocking(move || keeper.stop()).await;
        stopped.context("cannot end faults")?.context("cannot end faults")?;
        #[cfg(feature = "kubernetes")]
        if let Some(farewell) = farewell {
            farewell.await.context("cannot take leave of the Kubernetes API")?;
        }
        let _ = end.send(true);
        server.await.context("cannot end connections")
    });
    // Do not wait for a validation that blocks.
    runtime.shutdown_background();
    // Write errors were reported when they occurred, and the faults have ended.
    let _ = (reports.finish(), audited.finish());
    served.map(|()| ExitCode::SUCCESS)
}

/// Joins the cluster, if that is requested, and reports what the agent works with.
#[cfg(feature = "kubernetes")]
async fn join_cluster(
    args: &ClusterArgs,
    agent: &Arc<Agent>,
    reports: &Writer,
) -> Result<Option<Kubernetes>> {
    let Some(node) = args.node.clone().filter(|_| args.kubernetes) else { return Ok(None) };
    let options = kubernetes::Options {
        namespace: args.lease_namespace.clone(),
        patience: args.api_patience.0,
        node,
    };
    let reports = reports.clone();
    let say = move |line: String| reports.push(format!("injector: {line}\n"), Importance::Event);
    say(tokio::task::spawn_blocking(engines).await?);
    Ok(Some(Kubernetes::start(agent.clone(), options, say).await?))
}

/// The engines of faults on this machine.
#[cfg(feature = "kubernetes")]
fn engines() -> String {
    /// Unprivileged containers may not open it.
    const TUN: &str = "/dev/net/tun";
    let delays = match hold::Engine::choose(None) {
        Ok(hold::Engine::Tap)
            if std::fs::File::options().read(true).write(true).open(TUN).is_err() =>
        {
            format!("none, because the kernel has no sch_fq and {TUN} cannot be opened")
        }
        Ok(engine) => engine.to_string(),
        Err(error) => format!("none: {}", output::chain(&error)),
    };
    format!("engines: delays by {delays}; system calls by {}", hook::Engine::best())
}

fn say_where(reports: &Writer, socket: &Path, tcp: Option<&Tcp>, args: &AgentArgs) -> Result<()> {
    let say = |at: String| {
        let line = format!("injector: the agent serves {at}\n");
        reports.push(line, Importance::Event);
    };
    say(socket.display().to_string());
    if let Some(tcp) = tcp {
        let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
        say(format!("{scheme}://{}", tcp.address()?));
        if args.token_file.is_none() {
            output::complain(
                "warning: every user of this host can fault it by that address; --token-file asks for tokens",
            );
        }
    }
    Ok(())
}

/// Notifies systemd, if it started this process.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}

/// Waits for a signal to exit. Notifies the watchdog as long as the agent is healthy.
async fn wait(signals: &mut Signals, board: &Board) -> Result<()> {
    let patience = sd_notify::watchdog_enabled();
    let mut ticks = tokio::time::interval(patience.unwrap_or(HUNG) / 3);
    loop {
        tokio::select! {
            arrived = signals.next() => {
                let signal = arrived.context("cannot read signals")?.signal;
                if !matches!(signal, Signal::SIGHUP | Signal::SIGUSR1 | Signal::SIGUSR2) {
                    return Ok(());
                }
            }
            _ = ticks.tick() => {
                let is_well = Duration::from_nanos(board.silent_ns()) < HUNG;
                if patience.is_some() && is_well {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    }
}
