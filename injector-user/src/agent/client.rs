//! Asks an agent.

use std::{
    fmt::{self, Display, Formatter},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
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

/// Answers are not longer than that: 65,536 rules and what they did.
const LONGEST_ANSWER: usize = 64 << 20;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// At a socket.
    Unix(PathBuf),
    /// At a TCP address.
    Tcp {
        /// Host and port.
        authority: String,
        /// The host.
        host: String,
        /// Whether by TLS.
        is_tls: bool,
    },
}

impl Endpoint {
    /// Whether others on the network may read along.
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

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority, is_tls: true, .. } => write!(f, "https://{authority}"),
            Self::Tcp { authority, .. } => write!(f, "http://{authority}"),
        }
    }
}

/// Why an agent cannot be asked, or what it refused.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Not where an agent can be.
    #[error(
        "`{0}` is not where an agent is: write the path of its socket, http://HOST:PORT or https://HOST:PORT"
    )]
    Endpoint(String),
    /// There is none.
    #[error("cannot reach an agent at {at} (`injector agent` is one)")]
    Connect {
        /// Where.
        at: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// Whom to believe that it is the agent is not known.
    #[error("{0} takes the certificate of who vouches for the agent: give --agent-ca")]
    NoCertificate(Endpoint),
    /// It is not what a certificate looks like.
    #[error("cannot use the certificate {path}")]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Whoever is on the way would have the token.
    #[error("the token is not sent to {0} for all to read: use https, or an agent on this host")]
    Plain(Endpoint),
    /// A token that no header can have.
    #[error("the token has characters that it cannot have")]
    Token,
    /// The conversation broke off.
    #[error("the agent at {at} broke off")]
    Broken {
        /// Where.
        at: Endpoint,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It takes too long.
    #[error("the agent at {0} does not answer")]
    Late(Endpoint),
    /// What it says makes no sense.
    #[error("the agent at {at} answered {status}, and not as agents of this version do")]
    Answer {
        /// Where.
        at: Endpoint,
        /// The status.
        status: StatusCode,
    },
    /// It refused.
    #[error("the agent refused: {0}")]
    Refused(Problem),
}

impl ClientError {
    /// Whether the fault that was asked about is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.status == 404)
    }
}

/// Asks an agent over one connection, which is made anew when it breaks.
pub struct Client {
    at: Endpoint,
    token: Option<String>,
    tls: Option<TlsConnector>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Nothing is connected yet.
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

    /// Begins a fault.
    pub async fn create(&mut self, request: &FaultRequest) -> Result<Fault, ClientError> {
        self.ask(Method::POST, "/v1/faults", Some(request)).await
    }

    /// Renews the lease of a fault.
    pub async fn renew(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.ask(Method::POST, &format!("/v1/faults/{name}/renew"), None::<&()>).await
    }

    /// Ends a fault.
    pub async fn delete(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.ask(Method::DELETE, &format!("/v1/faults/{name}"), None::<&()>).await
    }

    /// A fault.
    pub async fn get(&mut self, name: &str) -> Result<Fault, ClientError> {
        self.ask(Method::GET, &format!("/v1/faults/{name}"), None::<&()>).await
    }

    /// All faults.
    pub async fn list(&mut self) -> Result<FaultList, ClientError> {
        self.ask(Method::GET, "/v1/faults", None::<&()>).await
    }

    /// How the agent is. It answers also if it is not well.
    pub async fn health(&mut self) -> Result<Health, ClientError> {
        let (status, answer) = self.hear(Method::GET, "/healthz", None::<&()>).await?;
        let unclear = |_| ClientError::Answer { at: self.at.clone(), status };
        serde_json::from_slice(&answer).map_err(unclear)
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let (status, answer) = self.hear(method, path, body).await?;
        let unclear = |_| ClientError::Answer { at: self.at.clone(), status };
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(unclear);
        }
        Err(ClientError::Refused(serde_json::from_slice(&answer).map_err(unclear)?))
    }

    /// Sends a request, and waits for the answer for as long as it may take.
    async fn hear(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let heard = tokio::time::timeout(PATIENCE, self.send(method, path, body)).await;
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
        let answer =
            Limited::new(response.into_body(), LONGEST_ANSWER).collect().await.map_err(broken)?;
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
                // It only makes requests later.
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
        // Who sends sees how it ends.
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
    fn a_token_is_not_sent_for_all_to_read() {
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
