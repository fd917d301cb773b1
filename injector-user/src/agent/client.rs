//! A client of the agent's API.

use std::{
    fmt::{self, Display, Formatter},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{
    api::{Fault, FaultList, FaultRequest, Health, Problem},
    server::MAX_PEM,
};
use crate::spec::source;

/// The maximum size of a response in bytes, enough for 65,536 rules with their counters.
const MAX_RESPONSE_SIZE: usize = 64 << 20;

/// The timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// The endpoint of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp {
        /// Host and port.
        authority: String,
        /// The host.
        host: String,
        /// Whether to use TLS.
        is_tls: bool,
    },
}

impl Endpoint {
    /// Whether the connection is unencrypted and leaves this host.
    fn is_plain(&self) -> bool {
        let Self::Tcp { host, is_tls: false, .. } = self else { return false };
        let address: Option<IpAddr> = host.parse().ok();
        host != "localhost" && !address.is_some_and(|address| address.is_loopback())
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let (is_tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(("unix", path)) => return Ok(Self::Unix(path.into())),
            Some(_) => return Err(ClientError::Endpoint(text.into())),
            None if text.is_empty() => return Err(ClientError::Endpoint(text.into())),
            None if is_host_and_port(text) => return Err(ClientError::NoScheme(text.into())),
            None => return Ok(Self::Unix(text.into())),
        };
        let uri: hyper::Uri = format!("http://{}", rest.trim_end_matches('/'))
            .parse()
            .map_err(|_| ClientError::Endpoint(text.into()))?;
        let is_bare = uri.path() == "/" && uri.query().is_none();
        let (Some(host), Some(port), true) = (uri.host(), uri.port_u16(), is_bare) else {
            return Err(ClientError::Endpoint(text.into()));
        };
        let authority = format!("{host}:{port}");
        let host = host.trim_start_matches('[').trim_end_matches(']').into();
        Ok(Self::Tcp { authority, host, is_tls })
    }
}

/// Whether this is `HOST:PORT`. A socket of such a name is given as a path, with a slash.
fn is_host_and_port(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    !text.contains('/') && port.parse::<u16>().is_ok()
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority, is_tls: true, .. } => write!(f, "https://{authority}"),
            Self::Tcp { authority, .. } => write!(f, "http://{authority}"),
        }
    }
}

/// Why a request to an agent failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The endpoint is malformed.
    #[error(
        "`{0}` is not an endpoint of an agent: use the path of its socket, http://HOST:PORT or https://HOST:PORT"
    )]
    Endpoint(String),
    /// The endpoint is a host and a port only.
    #[error(
        "`{0}` has no scheme: write https://{0}, http://{0} if the agent has no TLS, or the path of a socket"
    )]
    NoScheme(String),
    /// The agent is not reachable.
    #[error("cannot reach an agent at {at} (start one with `injector agent`)")]
    Connect {
        /// The endpoint.
        at: Endpoint,
        /// The cause.
        source: io::Error,
    },
    /// The CA certificate is missing.
    #[error("{0} requires a CA certificate to verify the agent: use --agent-ca")]
    NoCertificate(Endpoint),
    /// The CA certificate is invalid.
    #[error("cannot use the certificate {path}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token would be sent unencrypted.
    #[error("the token is not sent to {0} unencrypted: use https, or an agent on this host")]
    Plain(Endpoint),
    /// The token has characters that are invalid in a header.
    #[error("the token contains invalid characters")]
    Token,
    /// The connection was closed.
    #[error("the agent at {at} closed the connection")]
    Broken {
        /// The endpoint.
        at: Endpoint,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request timed out.
    #[error("the agent at {0} did not answer in time")]
    Late(Endpoint),
    /// The response is invalid.
    #[error("invalid response from the agent at {at} (status {status}): is it of another version?")]
    Answer {
        /// The endpoint.
        at: Endpoint,
        /// The status.
        status: StatusCode,
    },
    /// The agent refused the request.
    #[error("the agent refused: {0}")]
    Refused(Problem),
}

impl ClientError {
    /// Whether the fault does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.status == 404)
    }
}

/// A client with one connection, which is reestablished when it breaks.
pub struct Client {
    at: Endpoint,
    token: Option<String>,
    tls: Option<TlsConnector>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Creates a client that is not connected yet.
    pub fn new(
        at: Endpoint,
        token: Option<String>,
        ca: Option<&Path>,
    ) -> Result<Self, ClientError> {
        if token.is_some() && at.is_plain() {
            return Err(ClientError::Plain(at));
        }
        let tls = match (&at, ca) {
            (Endpoint::Tcp { is_tls: true, .. }, Some(ca)) => Some(connector(ca)?),
            (Endpoint::Tcp { is_tls: true, .. }, None) => {
                return Err(ClientError::NoCertificate(at));
            }
            _ => None,
        };
        Ok(Self { at, token, tls, connection: None })
    }

    /// Creates a fault.
    pub async fn create(&mut self, request: &FaultRequest) -> Result<Fault, ClientError> {
        self.request(Method::POST, "/v1/faults", Some(request)).await
    }

    /// Renews the lease of a fault.
    pub async fn renew(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.request(Method::POST, &format!("/v1/faults/{name}/renew"), None::<&()>).await
    }

    /// Ends a fault.
    pub async fn delete(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.request(Method::DELETE, &format!("/v1/faults/{name}"), None::<&()>).await
    }

    /// A fault.
    pub async fn get(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.request(Method::GET, &format!("/v1/faults/{name}"), None::<&()>).await
    }

    /// All faults.
    pub async fn list(&mut self) -> Result<FaultList, ClientError> {
        self.request(Method::GET, "/v1/faults", None::<&()>).await
    }

    /// The health of the agent, also if it is unhealthy.
    pub async fn health(&mut self) -> Result<Health, ClientError> {
        let (status, answer) = self.send_with_timeout(Method::GET, "/healthz", None::<&()>).await?;
        let unclear = |_| ClientError::Answer { at: self.at.clone(), status };
        serde_json::from_slice(&answer).map_err(unclear)
    }

    async fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let (status, answer) = self.send_with_timeout(method, path, body).await?;
        let unclear = |_| ClientError::Answer { at: self.at.clone(), status };
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(unclear);
        }
        Err(ClientError::Refused(serde_json::from_slice(&answer).map_err(unclear)?))
    }

    /// Sends a request and waits for the response for up to [`REQUEST_TIMEOUT`].
    async fn send_with_timeout(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let heard = tokio::time::timeout(REQUEST_TIMEOUT, self.send(method, path, body)).await;
        heard.unwrap_or_else(|_| Err(ClientError::Late(self.at.clone())))
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let at = self.at.clone();
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Broken {
            at: at.clone(),
            source,
        };
        let host = match &self.at {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp { authority, .. } => authority,
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).map_err(|error| broken(error.into()))?.into()
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body)).map_err(|_| ClientError::Token)?;
        let mut connection = if let Some(mut open) = self.connection.take()
            && open.ready().await.is_ok()
        {
            open
        } else {
            self.connect().await?
        };
        let response =
            connection.send_request(request).await.map_err(|error| broken(error.into()))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_RESPONSE_SIZE)
            .collect()
            .await
            .map_err(broken)?;
        self.connection = Some(connection);
        Ok((status, answer.to_bytes()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let fail = |source| ClientError::Connect { at: self.at.clone(), source };
        match &self.at {
            Endpoint::Unix(path) => {
                self.shake(UnixStream::connect(path).await.map_err(fail)?).await
            }
            Endpoint::Tcp { authority, host, .. } => {
                let stream = TcpStream::connect(authority).await.map_err(fail)?;
                // Only delays requests.
                let _ = stream.set_nodelay(true);
                match &self.tls {
                    Some(tls) => {
                        let name = ServerName::try_from(host.clone())
                            .map_err(|error| fail(io::Error::other(error)))?;
                        self.shake(tls.connect(name, stream).await.map_err(fail)?).await
                    }
                    None => self.shake(stream).await,
                }
            }
        }
    }

    async fn shake<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
    ) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::Broken { at: self.at.clone(), source: error.into() })?;
        // The sender of a request gets the error.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn connector(ca: &Path) -> Result<TlsConnector, ClientError> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Certificate {
        path: ca.into(),
        source,
    };
    let mut roots = RootCertStore::empty();
    let read = source::open(ca).and_then(|file| source::read_bytes(&file, MAX_PEM));
    let pem = read.map_err(|error| fail(error.into()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| fail(error.into()))?;
        roots.add(certificate).map_err(|error| fail(error.into()))?;
    }
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_sent_unencrypted() {
        for (at, is_sent) in [
            ("http://10.0.0.1:80", false),
            ("http://localhost.evil.example:80", false),
            ("http://[fd00::1]:80", false),
            ("http://localhost:80", true),
            ("http://127.0.0.1:80", true),
            ("http://[::1]:80", true),
            ("/run/a.sock", true),
        ] {
            let at: Endpoint = at.parse().expect(at);
            assert!(Client::new(at.clone(), None, None).is_ok(), "{at}");
            assert_eq!(Client::new(at.clone(), Some("x".into()), None).is_ok(), is_sent, "{at}");
        }
    }

    #[test]
    fn an_endpoint_is_a_path_or_an_address() {
        let parse = |text: &str| text.parse::<Endpoint>().map(|at| at.to_string()).ok();
        for (text, printed) in [
            ("/run/a.sock", "/run/a.sock"),
            ("unix:///run/a.sock", "/run/a.sock"),
            ("http://127.0.0.1:80/", "http://127.0.0.1:80"),
            ("https://[::1]:443", "https://[::1]:443"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(printed), "{text}");
        }
        for text in ["", "ftp://a:1", "http://a", "http://a:1/b", "http://", "http://a:99999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
