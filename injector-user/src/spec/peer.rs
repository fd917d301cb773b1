//! Peers given by name, whose addresses are looked up.

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
};

use super::{
    target::{PodName, PodSelection, TargetSpec},
    value::ValueError,
};

/// A peer given by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// A host name.
    Host(String),
    /// Something on this machine, by the name of its kind and its own name.
    Local(&'static str, String),
    /// Something in the Kubernetes cluster.
    Cluster(ClusterPeer),
    /// A target of the scenario. It has no text form.
    Target(String),
}

/// A peer in the Kubernetes cluster, which an agent with `--kubernetes` follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterPeer {
    /// Pods by labels, in the syntax of `kubectl --selector`.
    Pods {
        /// Their namespaces.
        namespaces: Namespaces,
        /// Their labels; empty for all pods.
        selector: String,
    },
    /// A service: its own addresses, and those of its endpoints.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// The namespaces of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The namespace of this name.
    Named(String),
    /// All namespaces with these labels. It has no text form.
    Labelled(String),
}

/// The form of the kind `pods`.
const PODS: [&str; 3] = ["pods", "NAMESPACE/SELECTOR", "shop/app=cart"];

/// The form of the kind `service`.
const SERVICE: [&str; 3] = ["service", "NAMESPACE/NAME", "shop/db"];

impl ClusterPeer {
    /// Parses the name behind the kind; `None` if it is another kind.
    fn parse(kind: &str, name: &str) -> Option<Result<Self, ValueError>> {
        let [kind, form, example] =
            [PODS, SERVICE].into_iter().find(|[known, ..]| *known == kind)?;
        if name.is_empty() {
            return Some(Err(ValueError::NoPeerName { kind, form, example }));
        }
        let wrong = || ValueError::ClusterPeer { kind, name: name.into(), form, example };
        if kind == PODS[0] {
            let pods = name.parse::<PodSelection>().map_err(|_| wrong());
            return Some(pods.map(|PodSelection { namespace, selector }| Self::Pods {
                namespaces: Namespaces::Named(namespace),
                selector,
            }));
        }
        let service = name.parse::<PodName>().map_err(|_| wrong());
        Some(service.map(|PodName { namespace, name }| Self::Service { namespace, name }))
    }
}

impl Display for ClusterPeer {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Pods { namespaces: Namespaces::Named(namespace), selector } => {
                write!(f, "{}:{namespace}/{selector}", PODS[0])
            }
            Self::Pods { namespaces: Namespaces::Labelled(labels), selector } => {
                write!(f, "{}:({labels})/{selector}", PODS[0])
            }
            Self::Service { namespace, name } => write!(f, "{}:{namespace}/{name}", SERVICE[0]),
        }
    }
}

/// A kind of peers on this machine.
#[derive(Debug)]
pub struct PeerKind {
    /// The name before the colon.
    pub name: &'static str,
    /// The form of the name after the colon.
    form: &'static str,
    /// An example of that name.
    example: &'static str,
    /// The target of this name, whose addresses are those of the peer.
    target: fn(&str) -> Result<TargetSpec, ValueError>,
}

/// The kinds of peers.
pub const KINDS: [PeerKind; 5] = [
    PeerKind {
        name: "container",
        form: "NAME",
        example: "web",
        target: |name| Ok(TargetSpec { container: Some(name.into()), ..TargetSpec::default() }),
    },
    PeerKind {
        name: "pod",
        form: "NAMESPACE/NAME",
        example: "default/web-0",
        target: |name| {
            let pod = name.parse().map_err(|_| ValueError::PeerPod(name.into()))?;
            Ok(TargetSpec { pod: Some(pod), ..TargetSpec::default() })
        },
    },
    PeerKind {
        name: "unit",
        form: "NAME",
        example: "nginx",
        target: |name| {
            let unit = name.parse().map_err(|_| ValueError::PeerUnit(name.into()))?;
            Ok(TargetSpec { unit: Some(unit), ..TargetSpec::default() })
        },
    },
    PeerKind {
        name: "netns",
        form: "NAME",
        example: "left",
        target: |name| Ok(TargetSpec { netns: Some(PathBuf::from(name)), ..TargetSpec::default() }),
    },
    PeerKind {
        name: "cgroup",
        form: "PATH",
        example: "/system.slice/db.service",
        target: |name| {
            Ok(TargetSpec { cgroup: Some(PathBuf::from(name)), ..TargetSpec::default() })
        },
    },
];

impl PeerKind {
    fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

/// The forms of all kinds of peers, for messages.
#[must_use]
pub fn forms() -> String {
    let local = KINDS.iter().map(|kind| [kind.name, kind.form]);
    let cluster = [PODS, SERVICE].map(|[name, form, _]| [name, form]);
    let forms = local.chain(cluster).map(|[name, form]| format!("{name}:{form}"));
    forms.collect::<Vec<_>>().join(", ")
}

impl Peer {
    /// Parses `KIND:NAME`. `None` if the text has another form, such as that of an IPv6 address.
    pub fn parse_local(text: &str) -> Option<Result<Self, ValueError>> {
        let (kind, name) = text.split_once(':')?;
        if let Some(peer) = ClusterPeer::parse(kind, name) {
            return Some(peer.map(Self::Cluster));
        }
        let Some(kind) = PeerKind::find(kind) else {
            return not_a_kind(text, kind, name).map(Err);
        };
        if name.is_empty() {
            let PeerKind { name, form, example, .. } = kind;
            return Some(Err(ValueError::NoPeerName { kind: name, form, example }));
        }
        Some((kind.target)(name).map(|_| Self::Local(kind.name, name.into())))
    }

    /// The target whose addresses are those of the peer, if it is on this machine.
    #[must_use]
    pub fn target(&self) -> Option<TargetSpec> {
        match self {
            // The name was checked when it was parsed.
            Self::Local(kind, name) => (PeerKind::find(kind)?.target)(name).ok(),
            Self::Host(_) | Self::Cluster(_) | Self::Target(_) => None,
        }
    }
}

/// What is wrong with `kind:name` if it is neither a peer nor a mistyped IPv6 address.
fn not_a_kind(text: &str, kind: &str, name: &str) -> Option<ValueError> {
    if let Some(rest) = name.strip_prefix("//") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let address = authority.rsplit('@').next().unwrap_or_default();
        let host = match address.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next(),
            None => address.split(':').next(),
        };
        let host = host.filter(|host| !host.is_empty())?.into();
        return Some(ValueError::PeerUrl { text: text.into(), host });
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let host = match text.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((address, port)) if is_number(port) => Some((address, port)),
        _ => (is_number(name) && !kind.is_empty()).then_some((kind, name)),
    };
    if let Some((host, port)) = host {
        let (host, port) = (host.into(), port.into());
        return Some(ValueError::PeerPort { text: text.into(), host, port });
    }
    let is_word = kind.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let is_hexadecimal = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    let is_address = name.contains(':') || is_hexadecimal(kind) && is_hexadecimal(name);
    (is_word && !is_address).then(|| ValueError::PeerKind { text: text.into(), kind: kind.into() })
}

impl Display for Peer {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Host(name) | Self::Target(name) => f.write_str(name),
            Self::Local(kind, name) => write!(f, "{kind}:{name}"),
            Self::Cluster(peer) => peer.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::value::Remote;

    #[test]
    fn each_kind_is_read_and_printed_the_same() {
        for text in [
            "container:web",
            "pod:shop/cart-0",
            "netns:left",
            "cgroup:/a/b",
            "netns:/proc/1/ns/net",
        ] {
            let Ok(Remote::Peer(peer)) = text.parse::<Remote>() else { panic!("{text}") };
            assert!(matches!(peer, Peer::Local(..)) && peer.target().is_some(), "{text}");
            assert_eq!(peer.to_string(), text);
        }
        assert!(matches!("db".parse(), Ok(Remote::Peer(Peer::Host(_)))));
        for text in
            ["pods:shop/app=cart", "pods:shop/app.kubernetes.io/name in (a, b)", "service:shop/db"]
        {
            let Ok(Remote::Peer(peer)) = text.parse::<Remote>() else { panic!("{text}") };
            assert!(matches!(peer, Peer::Cluster(_)), "{text}");
            assert_eq!(peer.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            (
                "container:",
                "`container:` has no name: write container:NAME, for instance container:web",
            ),
            ("pods:", "write pods:NAMESPACE/SELECTOR, for instance pods:shop/app=cart"),
            ("pods:cart", "`pods:cart` is not a peer: write pods:NAMESPACE/SELECTOR"),
            ("service:db", "`service:db` is not a peer: write service:NAMESPACE/NAME"),
            ("pod:web", "`pod:web` is not a pod: write pod:NAMESPACE/NAME"),
            ("foo:bar", "`foo:bar`: there is no kind of peer `foo`: write container:NAME, pod:"),
            ("db:5432", "`db:5432` has a port: write db, and the port as --remote-port 5432"),
            ("10.0.0.1:80", "write 10.0.0.1, and the port as --remote-port 80"),
            ("[fd00::1]:80", "write fd00::1, and the port as --remote-port 80"),
            ("fd00::g", "is not an address"),
            ("fd00:1", "write fd00, and the port"),
            ("fd00:abc", "is not an address"),
            (":", "is not an address"),
            (":80", "is not an address"),
            ("container", ""),
        ] {
            match text.parse::<Remote>() {
                Ok(_) => assert_eq!(words, "", "{text}"),
                Err(error) => {
                    assert!(
                        !words.is_empty() && error.to_string().contains(words),
                        "{text}: {error}"
                    );
                }
            }
        }
    }
}
