//! The listeners of the agent and its connections.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    },
};
use tower::ServiceExt as _;

use super::{
    access::Peer,
    routes::{Agent, shutdown_requested},
};
use crate::spec::source;

/// The maximum size of certificate and key files in bytes.
pub(super) const MAX_PEM: u64 = 1 << 20;

/// The timeout of TLS handshakes, of request headers, and of idle connections.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long open connections may continue when the agent ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to read from a refused client over the limit of connections.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(250);

/// The maximum number of refused clients that are read from.
const MAX_REFUSALS: usize = 16;

/// The delay after a failed accept.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The response to a client over the limit of connections.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\
Content-Length: 76\r\n\r\n{\"status\":503,\"error\":\"busy\",\"message\":\"there are too many connections now\"}";

/// Why the agent cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another agent serves the socket.
    #[error("another agent already serves {0}: stop it, or choose another socket with --socket")]
    Taken(PathBuf),
    /// The path is not a socket.
    #[error("{0} exists and is not a socket: choose another path with --socket")]
    NoSocket(PathBuf),
    /// The socket cannot be created.
    #[error("cannot create the socket {path}")]
    Socket {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Address {
        /// The address or file.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Any host could send requests.
    #[error(
        "{0} is reachable from other hosts: use --tls-cert, --tls-key and --token-file, or listen on \
         127.0.0.1"
    )]
    Unguarded(SocketAddr),
    /// A certificate or a key cannot be read.
    #[error("cannot read {path}")]
    Pem {
        /// The address or file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// Certificate and key are invalid or do not match.
    #[error("cannot use the certificate and the key")]
    Tls(#[source] rustls::Error),
}

/// The Unix socket, removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Creates the socket, accessible to its owner only. Removes the socket of a dead agent.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};

        let fail = |source| ListenError::Socket { path: path.into(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::NoSocket(path.into()));
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => {
                return Err(ListenError::Taken(path.into()));
            }
            Ok(_) => fs::remove_file(path).map_err(fail)?,
            Err(_) => {}
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        }
        // The umask closes the window before a chmod. No other thread creates files yet.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        Ok(Self { listener: listener.map_err(fail)?, path: path.into() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = fs::remove_file(&self.path);
    }
}

/// A TCP listener.
pub struct Tcp {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Tcp").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Tcp {
    /// Listens, unless other hosts could send requests without authentication.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<(&Path, &Path)>,
        has_tokens: bool,
    ) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() && (tls.is_none() || !has_tokens) {
            return Err(ListenError::Unguarded(address));
        }
        let tls = tls.map(|(certificate, key)| acceptor(certificate, key)).transpose()?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError::Address { address, source })?;
        Ok(Self { listener, tls })
    }

    /// The local address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, ListenError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ListenError::Pem { path, source }
    };
    let read = |path: &Path| {
        let read = source::open(path).and_then(|file| source::read_bytes(&file, MAX_PEM));
        read.map_err(pem::Error::Io).map_err(fail(path))
    };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(fail(certificate))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(fail(key))?;
    let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(ListenError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The HTTP service.
struct Service {
    agent: Arc<Agent>,
    router: Router,
    ending: watch::Receiver<bool>,
    refusals: Semaphore,
}

/// Serves until shutdown, then finishes open connections for up to [`SHUTDOWN_TIMEOUT`].
pub async fn serve(
    agent: Arc<Agent>,
    router: Router,
    socket: Socket,
    tcp: Option<Tcp>,
    mut ending: watch::Receiver<bool>,
) {
    let refusals = Semaphore::new(MAX_REFUSALS);
    let service = Arc::new(Service { agent, router, ending: ending.clone(), refusals });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown_requested(&mut ending) => break,
            // Reap ended connections.
            Some(_) = connections.join_next() => {}
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => take_unix(&service, &mut connections, stream),
                Err(error) => pause(&error).await,
            },
            accepted = accept(tcp.as_ref()) => match accepted {
                Ok((stream, address, tls)) => take_tcp(&service, &mut connections, stream, address, tls),
                Err(error) => pause(&error).await,
            },
        }
    }
    drop(socket);
    drop(tcp);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await;
}

async fn accept(tcp: Option<&Tcp>) -> io::Result<(TcpStream, SocketAddr, Option<TlsAcceptor>)> {
    match tcp {
        Some(tcp) => {
            let (stream, address) = tcp.listener.accept().await?;
            Ok((stream, address, tcp.tls.clone()))
        }
        None => std::future::pending().await,
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot take a connection");
    tokio::time::sleep(ACCEPT_BACKOFF).await;
}

/// A counted connection, released when dropped.
struct Place(Arc<Agent>);

impl Place {
    /// Unauthenticated clients on the network count too, so some connections are reserved for the socket.
    fn take(agent: &Arc<Agent>, peer: &Peer) -> Option<Self> {
        let all = agent.limits.connections;
        let most = match peer {
            Peer::Unix { .. } | Peer::Kubernetes { .. } => all,
            Peer::Tcp { .. } => all - all / 4,
        };
        if agent.connections.fetch_add(1, Relaxed) >= most {
            agent.connections.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(agent.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Refuses a client over the limit. Reads its request, unless there are too many refused clients: closing
/// with unread data would reset the connection before the client reads the response.
async fn refuse(service: &Service, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let place = service.refusals.try_acquire();
    let talk = async {
        stream.write_all(FULL).await?;
        if place.is_ok() {
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
        io::Result::Ok(())
    };
    // The client may have gone.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, talk).await;
}

fn take_unix(service: &Arc<Service>, connections: &mut JoinSet<()>, stream: UnixStream) {
    let Ok(peer) = stream.peer_cred() else { return };
    let peer = Peer::Unix { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
    let service = service.clone();
    let Some(place) = Place::take(&service.agent, &peer) else {
        connections.spawn(async move { refuse(&service, stream).await });
        return;
    };
    connections.spawn(async move {
        let _place = place;
        talk(&service, stream, peer).await;
    });
}

fn take_tcp(
    service: &Arc<Service>,
    connections: &mut JoinSet<()>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) {
    let service = service.clone();
    let peer = Peer::Tcp { address };
    let Some(place) = Place::take(&service.agent, &peer) else {
        // A response over TLS would need a handshake.
        if tls.is_none() {
            connections.spawn(async move { refuse(&service, stream).await });
        }
        return;
    };
    connections.spawn(async move {
        let _place = place;
        // Only delays responses.
        let _ = stream.set_nodelay(true);
        match tls {
            None => talk(&service, stream, peer).await,
            Some(tls) => match tokio::time::timeout(CLIENT_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => talk(&service, stream, peer).await,
                Ok(Err(error)) => tracing::debug!(%error, %address, "no TLS"),
                Err(_) => tracing::debug!(%address, "no TLS in time"),
            },
        }
    });
}

/// Serves one connection.
async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    service: &Service,
    stream: S,
    peer: Peer,
) {
    let answer = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let mut ending = service.ending.clone();
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown_requested(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "a connection ended");
    }
}
