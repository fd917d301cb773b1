//! `--protect` leaves the operator's own connections alone. Port 22 is in xdp.rs.

mod support;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use support::{Family, INTERFACE, Injector, Lab};

/// A connection between the two hosts, both ends held by this process, which starts injector: so this
/// is what a shell's sshd holds.
fn connection(lab: &Lab, at: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = lab.right.inside(|| TcpListener::bind(at)).expect("the address is its own");
    let near = lab.left.inside(|| TcpStream::connect(at)).expect("somebody listens");
    let (far, _) = listener.accept().expect("somebody has connected");
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        end.set_nodelay(true).expect("an option");
    }
    (near, far)
}

/// Whether a byte gets there and back.
fn exchange((near, far): &mut (TcpStream, TcpStream)) -> io::Result<()> {
    let mut byte = [0];
    near.write_all(b"?")?;
    far.read_exact(&mut byte)?;
    far.write_all(b"!")?;
    near.read_exact(&mut byte)
}

#[test]
fn connections_of_the_shell_go_on_and_others_do_not() {
    for family in support::FAMILIES {
        let lab = Lab::new();
        let at = lab.right.at(family, 4022);
        let mut own = connection(&lab, at);
        exchange(&mut own).expect("nothing is faulted yet");

        let injector = Injector::start(&lab.left, &format!("--interface {INTERFACE} --loss 100%"));
        exchange(&mut own).expect("it is the operator's");
        let other = lab.left.inside(|| TcpStream::connect_timeout(&at, Duration::from_millis(500)));
        assert!(other.is_err(), "a connection made later is not protected");
        let total = injector.stop().total;
        assert!(total.protected >= 2, "{total:?}");
        assert!(total.dropped > 0, "{total:?}");
    }
}

#[test]
fn no_protect_lifts_it() {
    let lab = Lab::new();
    let mut own = connection(&lab, lab.right.at(Family::V4, 4022));
    let line = format!("--interface {INTERFACE} --no-protect --loss 100%");
    let injector = Injector::start(&lab.left, &line);
    exchange(&mut own).expect_err("it is not protected");
    assert_eq!(injector.stop().total.protected, 0);
}

#[test]
fn loopback_is_left_alone_unless_it_is_asked_for() {
    let lab = Lab::new();
    let localhost = "127.0.0.1".parse().expect("an address");
    let answers = || lab.left.ping(None, localhost, 3) == 3;
    for (line, spared) in [
        ("--host", true),
        ("--host --no-protect", false),
        ("--interface lo", false),
        (&format!("--interface {INTERFACE}"), true),
    ] {
        let injector = Injector::start(&lab.left, &format!("{line} --loss 100%"));
        assert_eq!(answers(), spared, "{line}");
        injector.stop();
    }
}

#[test]
fn the_log_of_the_ebpf_side_is_on_with_verbose_and_off_without() {
    let lab = Lab::new();
    let to = lab.right.address(Family::V4).to_string();
    for (verbose, logged) in [("-v", true), ("--seed=1", false)] {
        let mut command = lab.left.command(support::INJECTOR, None);
        command.args(["run", verbose, "--loss", "100%", "--direction", "egress", "--"]);
        command.args(["ping", "-q", "-c", "2", "-i", "0.3", "-W", "0.3", &to]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("rule 0: lost"), logged, "{verbose}: {said}");
    }
}
