//! System calls that fail: the specification, and the kernel hooks that serve it.

use std::net::Ipv6Addr;

use injector_common::{errno::Remote, glob::Glob};
use ipnet::{IpNet, Ipv6Net};
use nix::errno::Errno;
use thiserror::Error;

use super::{ProcessError, ProcessFault, Syscall};
use crate::spec::{
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    parameters::{Given, Parameter, Value, malformed, values},
    value::Percent,
};

/// Why a syscall failure is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ErrnoError {
    /// Not an error number.
    #[error("`{0}` is not an error: write a name of errno(3), for instance EIO or ECONNREFUSED")]
    Errno(String),
    /// No hook serves the call.
    #[error(
        "{name} cannot be made to fail: no security hook of Linux lies on its way; `strace -f -e \
         inject={name}:error=EIO CMD` fails it with EIO. These can: {}",
        served().join(", ")
    )]
    NotServed {
        /// The system call.
        name: &'static str,
    },
    /// No hook of the call provides the data to match.
    #[error("{name} cannot be matched by {by}: {hint}")]
    NotMatched {
        /// The system call.
        name: &'static str,
        /// The requested match.
        by: &'static str,
        /// Supported matches.
        hint: String,
    },
    /// The calls pass different hooks.
    #[error("{0} and {1} pass different hooks of the kernel's: name them in an --errno each")]
    Hooks(&'static str, &'static str),
    /// Both a path and a remote match.
    #[error("`{0}`: a call is about a path or a remote address, not about both")]
    Both(String),
    /// Not a path pattern.
    #[error(
        "`{0}` is not a pattern of paths: write an absolute path, in which * stands for any bytes and ? for one, of up to \
         255 bytes"
    )]
    Glob(String),
    /// Not a network.
    #[error(
        "`{0}` is not a network: write an address or a CIDR prefix, for instance 10.0.0.0/8 or ::1"
    )]
    Remote(String),
}

/// What else serves where no system call can be made to fail.
pub const INSTEAD: &str = "strace -f -e inject=write:error=EIO CMD; for ENOSPC also a small file system: \
                           mount -t tmpfs -o size=1m none DIR";

/// The arguments that a hook passes to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `struct file *`.
    File,
    /// `struct path *`.
    Path,
    /// `struct path *` of a directory, and `struct dentry *` of an entry in it.
    Entry,
    /// A socket and its `struct sockaddr *`.
    Address,
    /// A socket and its `struct msghdr *`.
    Message,
    /// A socket.
    Peer,
    /// Nothing that can be matched.
    None,
}

impl Subject {
    const fn has_path(self) -> bool {
        matches!(self, Self::File | Self::Path | Self::Entry)
    }

    const fn has_remote(self) -> bool {
        matches!(self, Self::Address | Self::Message | Self::Peer)
    }
}

/// A security hook.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name without prefix. The kernel function is `security_<name>`, the BPF LSM hook
    /// `bpf_lsm_<name>`.
    pub name: &'static str,
    /// System calls that pass the hook exactly once, separated by spaces.
    pub calls: &'static str,
    /// The arguments of the hook.
    pub subject: Subject,
    /// System calls that pass the hook after another one. The other one serves them, unless the
    /// match needs this hook's arguments.
    also: &'static str,
}

/// All supported hooks. The first one that provides the data to match serves a call.
pub static HOOKS: &[Hook] = &[
    hook("file_open", "open openat openat2 creat", Subject::File),
    hook(
        "file_permission",
        "read pread64 readv preadv preadv2 write pwrite64 writev pwritev pwritev2 getdents getdents64 fallocate",
        Subject::File,
    ),
    hook("mmap_file", "mmap", Subject::File),
    hook("file_ioctl", "ioctl", Subject::File),
    hook("file_fcntl", "fcntl", Subject::File),
    hook("file_lock", "flock", Subject::File),
    hook("path_truncate", "truncate", Subject::Path),
    hook("path_mkdir", "mkdir mkdirat", Subject::Entry),
    hook("path_rmdir", "rmdir", Subject::Entry),
    hook("path_unlink", "unlink unlinkat", Subject::Entry),
    hook("path_rename", "rename renameat renameat2", Subject::Entry),
    hook("path_symlink", "symlink symlinkat", Subject::Entry),
    hook("path_mknod", "mknod mknodat", Subject::Entry),
    hook("path_link", "link linkat", Subject::None),
    hook("path_chmod", "chmod fchmod fchmodat", Subject::Path),
    hook("path_chown", "chown fchown lchown fchownat", Subject::Path),
    hook("inode_getattr", "stat fstat lstat newfstatat statx", Subject::Path),
    hook("bprm_creds_for_exec", "execve execveat", Subject::None),
    hook("task_alloc", "fork vfork clone clone3", Subject::None),
    hook("socket_create", "socket", Subject::None),
    hook("socket_bind", "bind", Subject::None),
    hook("socket_listen", "listen", Subject::None),
    hook("socket_accept", "accept accept4", Subject::None),
    hook("socket_connect", "connect", Subject::Address),
    Hook {
        also: "write writev",
        ..hook("socket_sendmsg", "sendto sendmsg sendmmsg", Subject::Message)
    },
    Hook {
        also: "read readv",
        ..hook("socket_recvmsg", "recvfrom recvmsg recvmmsg", Subject::Peer)
    },
];

const fn hook(name: &'static str, calls: &'static str, subject: Subject) -> Hook {
    Hook { name, calls, subject, also: "" }
}

impl Hook {
    fn serves(&self, call: &str) -> bool {
        let mut calls = self.calls.split(' ').chain(self.also.split(' '));
        calls.any(|served| served == call)
    }
}

/// All system calls that can fail.
fn served() -> Vec<&'static str> {
    HOOKS.iter().flat_map(|hook| hook.calls.split(' ')).collect()
}

values!(Failure);
interpolate!(Failure { calls, errno, probability, path, remote, hook });

/// System calls to fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The system calls.
    pub calls: Vec<Syscall>,
    /// The error to return.
    pub errno: Errno,
    /// Probability of a failure.
    pub probability: Percent,
    /// Path pattern to match, if any.
    path: Option<String>,
    /// Peers to match, if any.
    remote: Option<IpNet>,
    /// The hook that serves the calls.
    pub hook: &'static Hook,
}

impl Failure {
    /// The path pattern, if there is one.
    #[must_use]
    pub fn glob(&self) -> Option<Glob> {
        Glob::new(self.path.as_ref()?.as_bytes())
    }

    /// The peers to match, if there are any.
    #[must_use]
    pub fn remote(&self) -> Option<Remote> {
        let net = match self.remote? {
            IpNet::V6(net) => net,
            IpNet::V4(net) => {
                Ipv6Net::new(net.network().to_ipv6_mapped(), 96 + net.prefix_len()).ok()?
            }
        };
        let words = |address: Ipv6Addr| {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            [0, 1, 2, 3].map(|number| u32::from_ne_bytes(words[number]))
        };
        Some(Remote { network: words(net.network()), mask: words(net.netmask()) })
    }

    /// The hook arguments that the match needs.
    #[must_use]
    pub const fn subject(&self) -> Subject {
        if self.path.is_some() || self.remote.is_some() { self.hook.subject } else { Subject::None }
    }
}

impl Value for Failure {
    type Error = ProcessError;

    const NAME: &'static str = "a failure";
    const SYNTAX: &'static str = "SYSCALL[/SYSCALL]=ERRNO[,P][,path=GLOB][,remote=CIDR]";
    const EXAMPLE: &'static str =
        "write/pwrite64=ENOSPC,30%,path=/data/* or connect=ECONNREFUSED,remote=10.0.0.0/8";
    const REQUIRED: usize = 2;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::new("syscall", "Which system calls fail; several with / between them."),
        Parameter::new("errno", "What they fail with, a name of errno(3), such as EIO."),
        Parameter::percent("probability", "How many of the calls fail; default 100%."),
        Parameter::new("path", "Only calls on files whose path matches this pattern (* and ?)."),
        Parameter::new("remote", "Only calls to or from these peers, an address or CIDR prefix."),
    ];

    fn split(text: &str) -> Result<Given<'_>, ProcessError> {
        let malformed = || malformed::<Self>(text);
        let mut given = Given::new(text);
        let (calls, rest) = text.split_once('=').ok_or_else(malformed)?;
        given.add("syscall", calls);
        let mut parts = rest.split(',').map(str::trim).peekable();
        given.add("errno", parts.next().unwrap_or_default());
        if let Some(probability) = parts.next_if(|part| !part.is_empty() && !part.contains('=')) {
            given.add("probability", probability);
        }
        for part in parts {
            let name = match part.split_once('=') {
                Some(("path", value)) if !value.is_empty() => ("path", value),
                Some(("remote", value)) if !value.is_empty() => ("remote", value),
                _ => return Err(malformed().into()),
            };
            if !given.add(name.0, name.1) {
                return Err(malformed().into());
            }
        }
        Ok(given)
    }

    fn join(parameters: &[(&'static str, String)]) -> String {
        let write = |(name, value): &(&'static str, String)| match *name {
            "syscall" => value.clone(),
            "errno" => format!("={value}"),
            "probability" => format!(",{value}"),
            name => format!(",{name}={value}"),
        };
        parameters.iter().map(write).collect()
    }

    fn from_parameters(given: &Given) -> Result<Self, ProcessError> {
        let [calls, errno] = ["syscall", "errno"].map(|name| given.get(name).unwrap_or_default());
        let calls: Vec<Syscall> = calls.split('/').map(str::parse).collect::<Result<_, _>>()?;
        let probability = given.parse("probability")?.unwrap_or(Percent::ALL);
        Ok(Self {
            hook: one_hook(given.text(), &calls, given.has("path"), given.has("remote"))?,
            calls,
            errno: named_errno(errno)?,
            probability,
            path: given.get("path").map(checked_glob).transpose()?,
            remote: given.get("remote").map(network).transpose()?,
        })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let names: Vec<_> = self.calls.iter().map(|call| call.name()).collect();
        let mut parameters = vec![
            ("syscall", names.join("/")),
            ("errno", format!("{:?}", self.errno)),
            ("probability", self.probability.to_string()),
        ];
        parameters.extend(self.path.iter().map(|path| ("path", path.clone())));
        parameters.extend(self.remote.map(|remote| ("remote", remote.to_string())));
        parameters
    }
}

impl ProcessFault for Failure {
    const INFO: Info = Info {
        name: "errno",
        instead: INSTEAD,
        value: "SYSCALL[/SYSCALL]=ERRNO[,P][,path=GLOB][,remote=CIDR]",
        placeholder: "CALL=ERRNO[,...]",
        help: "Fail system calls with an error; repeatable",
        detail: "In the kernel, before they do anything. P is 100% if left out. With path=, only calls on files by \
                 whose path they go; with remote=, only calls to or from these peers.",
        examples: &[
            "openat=ENOENT",
            "write/pwrite64=ENOSPC,30%,path=/data/*",
            "connect=ECONNREFUSED,remote=10.0.0.0/8",
        ],
        trial: Some(Trial {
            options: "--errno openat=EIO,path=/dev/null",
            effect: Effect::Process,
        }),
    };
}

fn one_hook(
    text: &str,
    calls: &[Syscall],
    by_path: bool,
    by_remote: bool,
) -> Result<&'static Hook, ErrnoError> {
    if by_path && by_remote {
        return Err(ErrnoError::Both(text.into()));
    }
    let mut found: Option<(&'static str, &'static Hook)> = None;
    for call in calls {
        let name = call.name();
        let hook = hook_of(name, by_path, by_remote)?;
        match found {
            Some((first, other)) if other != hook => return Err(ErrnoError::Hooks(first, name)),
            _ => found = Some((name, hook)),
        }
    }
    // The list of calls is not empty.
    found.map(|(_, hook)| hook).ok_or_else(|| ErrnoError::Errno(text.into()))
}

fn hook_of(
    name: &'static str,
    by_path: bool,
    by_remote: bool,
) -> Result<&'static Hook, ErrnoError> {
    let passed = |hook: &&Hook| hook.serves(name);
    let knows = |hook: &&Hook| {
        (!by_path || hook.subject.has_path()) && (!by_remote || hook.subject.has_remote())
    };
    let mut hooks = HOOKS.iter().filter(passed).peekable();
    if hooks.peek().is_none() {
        return Err(ErrnoError::NotServed { name });
    }
    let mut rest = hooks.clone();
    hooks.find(knows).ok_or_else(|| {
        let by = if by_path { "path" } else { "remote" };
        let hint = if rest.any(|hook| hook.subject.has_path()) {
            "match it by path, or leave the match out"
        } else if by_path && HOOKS.iter().filter(passed).any(|hook| hook.subject.has_remote()) {
            "match it by remote, or leave the match out"
        } else {
            "leave the match out"
        };
        ErrnoError::NotMatched { name, by, hint: hint.into() }
    })
}

fn named_errno(name: &str) -> Result<Errno, ErrnoError> {
    /// The last error number of Linux (`EHWPOISON`). Kernel-internal ones are far above it.
    const LAST: i32 = 133;
    let name = name.trim().to_ascii_uppercase();
    // Aliases, which nix defines as constants.
    let known = match name.as_str() {
        "EWOULDBLOCK" => Some(Errno::EWOULDBLOCK),
        "ENOTSUP" => Some(Errno::ENOTSUP),
        "EDEADLOCK" => Some(Errno::EDEADLOCK),
        "UNKNOWNERRNO" => None,
        name => (1..=LAST).map(Errno::from_raw).find(|errno| format!("{errno:?}") == name),
    };
    known.ok_or(ErrnoError::Errno(name))
}

fn checked_glob(text: &str) -> Result<String, ErrnoError> {
    let is_absolute = text.starts_with(['/', '*', '?']);
    if is_absolute && Glob::new(text.as_bytes()).is_some() {
        Ok(text.into())
    } else {
        Err(ErrnoError::Glob(text.into()))
    }
}

fn network(text: &str) -> Result<IpNet, ErrnoError> {
    let net =
        text.parse().or_else(|_| text.parse().map(|address: std::net::IpAddr| address.into()));
    net.map(|net: IpNet| net.trunc()).map_err(|_| ErrnoError::Remote(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, String> {
        let failure = text.parse::<Failure>().map_err(|error| error.to_string())?;
        Ok(failure.to_string())
    }

    #[test]
    fn failures_print_as_they_were_written() {
        for text in [
            "openat=ENOENT,100%",
            "write/pwrite64=ENOSPC,30%,path=/data/*",
            "connect=ECONNREFUSED,0.1%,remote=10.0.0.0/8",
            "read=EIO,1%,remote=fd00::/64",
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(text));
        }
        assert_eq!(parsed("openat=enoent").as_deref(), Ok("openat=ENOENT,100%"));
        assert_eq!(parsed("mkdir=EIO,path=/a").as_deref(), Ok("mkdir=EIO,100%,path=/a"));
        assert_eq!(parsed("recvfrom=EWOULDBLOCK").as_deref(), Ok("recvfrom=EAGAIN,100%"));
    }

    #[test]
    fn calls_are_served_by_the_hook_that_knows_what_is_matched() {
        let hook = |text: &str| text.parse::<Failure>().expect(text).hook.name;
        assert_eq!(hook("write=EIO"), "file_permission");
        assert_eq!(hook("write=EIO,path=/x"), "file_permission");
        assert_eq!(hook("write=EPIPE,remote=::1"), "socket_sendmsg");
        assert_eq!(hook("sendto=EPIPE"), "socket_sendmsg");
        for hook in HOOKS {
            for call in hook.calls.split(' ') {
                assert!(call.parse::<Syscall>().is_ok(), "{call}");
                assert_eq!(served().iter().filter(|other| **other == call).count(), 1, "{call}");
            }
        }
    }

    #[test]
    fn wrong_failures_are_refused_by_what_is_wrong() {
        for (text, word) in [
            ("openat", "SYSCALL"),
            ("openat=", "not an error"),
            ("openat=EWRONG", "EWRONG"),
            ("openat=UnknownErrno", "not an error"),
            ("openat=ENOENT,101%", "101%"),
            ("openat=ENOENT,1%,depth=3", "SYSCALL"),
            ("frob=EIO", "frob"),
            ("fsync=EIO", "`strace -f -e inject=fsync:error=EIO CMD`"),
            ("openat/mkdir=EIO", "different hooks"),
            ("openat=EIO,remote=::1", "match it by path"),
            ("connect=EIO,path=/x", "match it by remote"),
            ("execve=EIO,path=/x", "leave the match out"),
            ("write=EIO,path=/x,remote=::1", "not about both"),
            ("openat=EIO,path=x", "absolute"),
            ("connect=EIO,remote=10.0.0.0/33", "10.0.0.0/33"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn networks_are_matched_in_the_form_of_ipv6() {
        let remote = |text: &str| {
            let failure: Failure = format!("connect=EIO,remote={text}").parse().expect(text);
            failure.remote().expect("one was given")
        };
        let v4 = |text: &str| {
            let address: std::net::Ipv4Addr = text.parse().expect(text);
            injector_common::errno::mapped(u32::from_ne_bytes(address.octets()))
        };
        assert!(remote("10.0.0.0/8").contains(v4("10.1.2.3")));
        assert!(!remote("10.0.0.0/8").contains(v4("11.1.2.3")));
        assert!(remote("10.1.2.3").contains(v4("10.1.2.3")));
        assert!(!remote("10.1.2.3").contains(v4("10.1.2.4")));
        assert!(remote("0.0.0.0/0").contains(v4("10.1.2.3")));
        assert!(!remote("0.0.0.0/0").contains([1; 4]));
        assert!(remote("::/0").contains([1; 4]));
    }
}
