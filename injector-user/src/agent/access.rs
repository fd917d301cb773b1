//! Access control: any process that can open the socket; over TCP, clients with a token, or without
//! tokens, clients of this host.

use std::{
    fmt::{self, Display, Formatter},
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, header};
use serde::Serialize;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::api::{Code, Problem};
use crate::spec::source;

/// The minimum length of a token in bytes.
const MIN_TOKEN_LENGTH: usize = 16;

/// The maximum size of a token file in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Why a token file cannot be used.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the tokens in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Other users can access the file.
    #[error("{0} can be read or changed by other users: chown root it and chmod 600 it")]
    Open(PathBuf),
    /// A line is malformed.
    #[error(
        "{path}: line {line} is not NAME:TOKEN, with a name of letters, digits, dots, dashes and underscores, and a \
         token of {MIN_TOKEN_LENGTH} or more visible ASCII characters"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number.
        line: usize,
    },
    /// The file has no token.
    #[error("{0} contains no token")]
    Empty(PathBuf),
}

/// The client at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Peer {
    /// A local process, by the Unix socket.
    Unix {
        /// The user ID.
        uid: u32,
        /// The group ID.
        gid: u32,
        /// The PID in this PID namespace.
        pid: Option<i32>,
    },
    /// A client over TCP.
    Tcp {
        /// The remote address.
        address: SocketAddr,
    },
    /// A custom resource of a Kubernetes cluster.
    Kubernetes {
        /// The namespace and the name of the resource.
        resource: String,
    },
}

impl Display for Peer {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Unix { uid, pid: Some(pid), .. } => write!(f, "uid {uid}, pid {pid}"),
            Self::Unix { uid, .. } => write!(f, "uid {uid}"),
            Self::Tcp { address } => write!(f, "{address}"),
            Self::Kubernetes { resource } => write!(f, "kubernetes:{resource}"),
        }
    }
}

/// The name of the presented token.
#[derive(Clone, Debug)]
pub struct TokenName(pub String);

struct Token {
    name: String,
    secret: Vec<u8>,
}

/// The access policy for peers.
#[derive(Default)]
pub struct Access {
    tokens: Vec<Token>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        // Omit the secrets.
        f.debug_list().entries(self.tokens.iter().map(|token| &token.name)).finish()
    }
}

impl Access {
    /// Reads tokens: lines of `NAME:TOKEN`. Skips empty lines and those that start with #.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let fail = |source| TokenError::Read { path: path.into(), source };
        let file = source::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let is_ours = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
        if metadata.mode() & 0o077 != 0 || !is_ours {
            return Err(TokenError::Open(path.into()));
        }
        let bytes = source::read_bytes(&file, MAX_FILE_SIZE).map_err(fail)?;
        let text = String::from_utf8(bytes).map_err(|error| fail(io::Error::other(error)))?;
        let lines = text.lines().enumerate().map(|(number, line)| (number, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(number, line): (usize, &str)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_'].contains(&c);
            line.split_once(':')
                .filter(|(name, _)| !name.is_empty() && name.chars().all(is_name))
                .filter(|(_, secret)| secret.len() >= MIN_TOKEN_LENGTH)
                .filter(|(_, secret)| secret.bytes().all(|byte| byte.is_ascii_graphic()))
                .map(|(name, secret)| Token { name: name.into(), secret: secret.into() })
                .ok_or_else(|| TokenError::Line { path: path.into(), line: number + 1 })
        };
        let tokens: Vec<Token> = lines.map(parse).collect::<Result<_, _>>()?;
        if tokens.is_empty() { Err(TokenError::Empty(path.into())) } else { Ok(Self { tokens }) }
    }

    /// Authenticates a peer. Returns the name of its token, if required.
    pub fn check(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<TokenName>, Problem> {
        if matches!(peer, Peer::Unix { .. }) {
            return Ok(None);
        }
        if self.tokens.is_empty() {
            return check_host(headers).and_then(|()| check_origin(headers)).map(|()| None);
        }
        let given = headers
            .get(header::AUTHORIZATION)
            .map(axum::http::HeaderValue::as_bytes)
            .and_then(|value| value.split_at_checked("Bearer ".len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map_or(&b""[..], |(_, secret)| secret);
        // Compare with all tokens, so that timing reveals nothing.
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.secret.ct_eq(given)) {
                found = Some(TokenName(token.name.clone()));
            }
        }
        let refused = || Problem::new(Code::Unauthorized, "give a token: Authorization: Bearer …");
        found.map(Some).ok_or_else(refused)
    }
}

/// Rejects DNS rebinding: a web page in a browser of this host may send requests to the loopback by its
/// own host name, which is in the request.
fn check_host(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    if name == "localhost" || is_loopback {
        Ok(())
    } else {
        Err(Problem::new(Code::Forbidden, "this is asked by another name than localhost"))
    }
}

/// Rejects cross-site requests: a web page may also use the right host name, but browsers add its origin.
fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let site = headers.get("sec-fetch-site").map(header::HeaderValue::as_bytes);
    let is_of_page = headers.contains_key(header::ORIGIN)
        || site.is_some_and(|site| site != b"none" && site != b"same-origin");
    if is_of_page {
        Err(Problem::new(Code::Forbidden, "this is asked by a web page"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TCP: Peer = Peer::Tcp {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
    };

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a value"))])
    }

    fn access() -> Access {
        let token = |name: &str, secret: &str| Token { name: name.into(), secret: secret.into() };
        Access { tokens: vec![token("a", "0123456789abcdef"), token("b", "fedcba9876543210")] }
    }

    #[test]
    fn a_token_opens_and_nothing_else_does() {
        let named = |value: &str| {
            let headers = headers(header::AUTHORIZATION, value);
            access().check(&TCP, &headers).map(|name| name.map(|name| name.0))
        };
        assert_eq!(named("Bearer 0123456789abcdef"), Ok(Some("a".into())));
        assert_eq!(named("bearer fedcba9876543210"), Ok(Some("b".into())));
        for wrong in [
            "",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeff",
            "Basic 0123456789abcdef",
            "Bea",
        ] {
            assert_eq!(named(wrong).expect_err(wrong).status, 401);
        }
        let missing = access().check(&TCP, &HeaderMap::new());
        assert_eq!(missing.expect_err("no token").status, 401);
        let unix = Peer::Unix { uid: 0, gid: 0, pid: None };
        assert!(access().check(&unix, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn without_tokens_only_this_host_is_let_in_by_its_own_name() {
        for (host, is_let_in) in [
            ("localhost:1", true),
            ("127.0.0.1:8080", true),
            ("[::1]:8080", true),
            ("localhost", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let checked = Access::default().check(&TCP, &headers(header::HOST, host));
            assert_eq!(checked.is_ok(), is_let_in, "{host}");
        }
    }

    #[test]
    fn web_pages_are_not_let_in() {
        for (name, value, is_let_in) in [
            ("origin", "https://evil.example", false),
            ("origin", "null", false),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "same-site", false),
            ("sec-fetch-site", "none", true),
            ("accept", "*/*", true),
        ] {
            let mut headers = headers(header::HOST, "localhost:1");
            headers.insert(name, HeaderValue::from_static(value));
            let checked = Access::default().check(&TCP, &headers);
            assert_eq!(checked.is_ok(), is_let_in, "{name}: {value}");
        }
    }
}
