//! Translated addresses (NAT): a rule for the address that a process asked for matches, both ways, and
//! connections to the same backend by its own address are untouched.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use testbed::{
    FAMILIES, Family, Host, Injector, Lab, Process, TestCgroup,
    connection::{self, assert_whole, go},
    ip, number, serve, skip, talk,
};

const DATAGRAMS: u64 = 100;

/// The address of the service, by IP version.
const fn service(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.0.2.1",
        Family::V6 => "2001:db8::1",
    }
}

/// Translates the service's address, on the host that connects to it, to that of its peer, and port 81 to
/// port 9000 of the host itself. Returns whether this kernel can.
fn translate(host: &Host, peer: &Host) -> bool {
    let rules = format!(
        "table inet t {{\nchain o {{\ntype nat hook output priority -100;\n\
         ip daddr {v4} tcp dport 80 dnat ip to {}:9000\n\
         ip6 daddr {v6} tcp dport 80 dnat ip6 to [{}]:9000\n\
         ip daddr {v4} udp dport 53 dnat ip to {}:9000\n\
         ip6 daddr {v6} udp dport 53 dnat ip6 to [{}]:9000\n\
         tcp dport 81 redirect to :9000\n}}\n}}\n",
        peer.v4,
        peer.v6,
        peer.v4,
        peer.v6,
        v4 = service(Family::V4),
        v6 = service(Family::V6),
    );
    if !host.translate(&rules) {
        return false;
    }
    host.run(&format!("ip route replace {} via {}", service(Family::V4), peer.v4));
    host.run(&format!("ip route replace {} via {}", service(Family::V6), peer.v6));
    true
}

/// Translates the service's address by IPVS as kube-proxy does: `host` has the address itself, and packets
/// that it sends from this address are masqueraded. Returns whether this kernel can.
fn balance(host: &Host, backends: [IpAddr; 2]) -> bool {
    let masquerade = format!(
        "table inet t {{\nchain p {{\ntype nat hook postrouting priority 100;\n\
         ip saddr {} masquerade\nip6 saddr {} masquerade\n}}\n}}\n",
        service(Family::V4),
        service(Family::V6),
    );
    if !host.translate(&masquerade) {
        return false;
    }
    for (family, backend) in FAMILIES.into_iter().zip(backends) {
        let backend = SocketAddr::new(backend, 9000);
        for (option, port) in [("-t", 80), ("-u", 53)] {
            let service = at(service(family), port);
            let add = format!("ipvsadm -A {option} {service} -s rr");
            if !host.run_in(None, &add).0 {
                skip("no ipvsadm(8), or this kernel has no IPVS");
                return false;
            }
            host.run(&format!("ipvsadm -a {option} {service} -r {backend} -m"));
        }
        let length = if family == Family::V4 { 32 } else { 128 };
        host.run(&format!("ip address add {}/{length} dev lo", service(family)));
    }
    host.run("sysctl -q -w net.ipv4.vs.conntrack=1");
    true
}

fn addresses(host: &Host) -> [IpAddr; 2] {
    FAMILIES.map(|family| host.address(family))
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// A connection that waits for a command to transfer bytes.
fn hold(host: &Host, cgroup: Option<&TestCgroup>, to: SocketAddr) -> Process {
    connection::hold(host, cgroup, to, Duration::from_secs(5))
}

/// The targets that the tests fault: a cgroup, and everything in the namespace.
fn targets(host: &Host, cgroup: &TestCgroup) -> [String; 2] {
    [format!("--cgroup {}", cgroup.path.display()), format!("--netns {}", host.netns)]
}

#[test]
fn connections_match_by_the_address_that_was_asked_for() {
    let lab = Lab::new();
    if translate(&lab.left, &lab.right) {
        assert_matched_by_the_service(&lab);
    }
}

#[test]
fn connections_match_by_the_address_of_a_service_of_ipvs() {
    let lab = Lab::new();
    if balance(&lab.left, addresses(&lab.right)) {
        assert_matched_by_the_service(&lab);
    }
}

fn assert_matched_by_the_service(lab: &Lab) {
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for target in targets(&lab.left, &cgroup) {
        for direction in ["egress", "ingress", "both"] {
            for family in FAMILIES {
                let address = service(family);
                let place = format!("{target} {direction} {family:?}");
                let line = format!(
                    "{target} --reset --remote {address} --remote-port 80 --direction {direction}"
                );
                // An old connection and a new one, and one to the backend itself.
                let old = hold(&lab.left, Some(&cgroup), at(address, 80));
                let beside = hold(&lab.left, Some(&cgroup), lab.right.at(family, 9000));
                let injector = Injector::start(&lab.left, &line);
                assert_eq!(go(old)["error"], "ECONNRESET", "{place}");
                let new = hold(&lab.left, Some(&cgroup), at(address, 80));
                assert_eq!(go(new)["error"], "ECONNRESET", "{place}");
                assert_whole(&go(beside));
                let new = hold(&lab.left, Some(&cgroup), lab.right.at(family, 9000));
                assert_whole(&go(new));
                if target.starts_with("--cgroup") {
                    assert_whole(&go(hold(&lab.left, None, at(address, 80))));
                }
                assert_eq!(injector.stop().total.reset, 2, "{place}");
            }
        }
    }
}

#[test]
fn connections_match_by_the_address_of_their_packets_as_well() {
    let lab = Lab::new();
    if translate(&lab.left, &lab.right) {
        assert_matched_by_the_backend(&lab);
    }
}

#[test]
fn connections_through_ipvs_match_by_the_address_of_their_packets_as_well() {
    let lab = Lab::new();
    if balance(&lab.left, addresses(&lab.right)) {
        assert_matched_by_the_backend(&lab);
    }
}

fn assert_matched_by_the_backend(lab: &Lab) {
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["egress", "ingress"] {
        for family in FAMILIES {
            let line = format!(
                "--reset --remote {} --remote-port 9000 --direction {direction}",
                lab.right.address(family)
            );
            let injector = Injector::on(&lab.left, &cgroup, &line);
            for to in [at(service(family), 80), lab.right.at(family, 9000)] {
                let connection = hold(&lab.left, Some(&cgroup), to);
                assert_eq!(go(connection)["error"], "ECONNRESET", "{direction} {to}");
            }
            assert_eq!(injector.stop().total.reset, 2, "{direction} {family:?}");
        }
    }
}

/// A pod connects to a service that the node, another network namespace, translates.
#[test]
fn in_a_pod_connections_match_by_the_service_that_ipvs_of_the_node_translates() {
    let (lab, beyond) = (Lab::new(), Lab::new());
    // The other end of that link has the address of the pod.
    let (pod, node, server) = (&lab.right, &lab.left, &beyond.left);
    let backends = [[10, 12, 0, 2].into(), [0xfd12, 0, 0, 0, 0, 0, 0, 2].into()];
    if !balance(node, backends) {
        return;
    }
    let cable = format!(
        "link add cable netns {node} type veth peer name cable netns {server}\n",
        node = node.netns,
        server = server.netns
    );
    ip(&[], &cable);
    for (host, last) in [(node, 1), (server, 2)] {
        let batch = format!(
            "address add 10.12.0.{last}/24 dev cable\naddress add fd12::{last}/64 dev cable nodad\nlink set cable up\n"
        );
        ip(&["-n", &host.netns], &batch);
    }
    ip(&["-n", &server.netns], "link set veth0 down\n");
    node.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    server.run("ip route add default via 10.12.0.1");
    server.run("ip route add default via fd12::1");
    for family in FAMILIES {
        pod.run(&format!("ip route add {} via {}", service(family), node.address(family)));
    }
    let cgroup = TestCgroup::new();
    let _server = serve(server, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["egress", "ingress"] {
        for (family, backend) in FAMILIES.into_iter().zip(backends) {
            let to = at(service(family), 80);
            assert_whole(&go(hold(pod, Some(&cgroup), to)));
            let reset = |remote: IpAddr| {
                let line = format!("--reset --remote {remote} --direction {direction}");
                let injector = Injector::on(pod, &cgroup, &line);
                let report = go(hold(pod, Some(&cgroup), to));
                (report["error"] == "ECONNRESET", injector.stop().total.reset)
            };
            assert_eq!(reset(to.ip()), (true, 1), "{direction} {to}");
            // The address of the backend is not in the packets of the pod.
            assert_eq!(reset(backend), (false, 0), "{direction} {to}");
        }
    }
}

#[test]
fn connections_redirected_to_the_host_itself_match_by_the_address_that_was_asked_for() {
    let lab = Lab::new();
    if !translate(&lab.left, &lab.right) {
        return;
    }
    let cgroup = TestCgroup::new();
    let _sidecar = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["ingress", "both"] {
        for family in FAMILIES {
            let to = lab.right.at(family, 81);
            let line = format!("--reset --remote {} --direction {direction}", to.ip());
            let injector = Injector::on(&lab.left, &cgroup, &line);
            let connection = hold(&lab.left, Some(&cgroup), to);
            assert_eq!(go(connection)["error"], "ECONNRESET", "{direction} {to}");
            let beside = hold(&lab.left, Some(&cgroup), lab.left.at(family, 9000));
            assert_whole(&go(beside));
            assert_eq!(injector.stop().total.reset, 1, "{direction} {to}");
        }
    }
}

#[test]
fn connected_datagrams_match_by_the_address_that_was_asked_for() {
    let lab = Lab::new();
    if translate(&lab.left, &lab.right) {
        assert_datagrams_matched_by_the_service(&lab);
    }
}

#[test]
fn connected_datagrams_match_by_the_address_of_a_service_of_ipvs() {
    let lab = Lab::new();
    if balance(&lab.left, addresses(&lab.right)) {
        assert_datagrams_matched_by_the_service(&lab);
    }
}

fn assert_datagrams_matched_by_the_service(lab: &Lab) {
    let cgroup = TestCgroup::new();
    for target in targets(&lab.left, &cgroup) {
        for family in FAMILIES {
            let service = at(service(family), 53);
            let backend = lab.right.at(family, 9000);
            let send = |to: SocketAddr, cgroup| {
                let line = format!("udp-send --to {to} --count {DATAGRAMS} --connected --replies");
                number(&talk(&lab.left, cgroup, &line)["replies"], "received")
            };
            for direction in ["egress", "ingress"] {
                let place = format!("{target} {family:?} {direction}");
                let server =
                    serve(&lab.right, None, &format!("udp-receive --bind {backend} --echo"));
                let line = format!(
                    "{target} --loss 100% --remote {} --direction {direction}",
                    service.ip()
                );
                let injector = Injector::start(&lab.left, &line);
                assert_eq!(send(service, Some(&cgroup)), 0, "{place}");
                assert_eq!(send(backend, Some(&cgroup)), DATAGRAMS, "{place}");
                let total = injector.stop().total;
                let way = if direction == "egress" { total.egress } else { total.ingress };
                assert_eq!((way.packets, total.dropped), (DATAGRAMS, DATAGRAMS), "{place}");
                let arrived = if direction == "egress" { DATAGRAMS } else { 2 * DATAGRAMS };
                assert_eq!(number(&server.finish(), "received"), arrived, "{place}");
            }
        }
    }
}

#[test]
fn a_port_that_is_reused_without_translation_is_not_taken_for_the_service() {
    let lab = Lab::new();
    if !translate(&lab.left, &lab.right) {
        return;
    }
    let cgroup = TestCgroup::new();
    let service = at(service(Family::V4), 53);
    let backend = lab.right.at(Family::V4, 9000);
    let server = serve(&lab.right, None, &format!("udp-receive --bind {backend} --echo"));
    let send = |to: SocketAddr, cgroup| {
        let line = format!(
            "udp-send --bind {}:7777 --to {to} --count {DATAGRAMS} --connected --replies",
            lab.left.v4
        );
        number(&talk(&lab.left, cgroup, &line)["replies"], "received")
    };
    for target in targets(&lab.left, &cgroup) {
        let line = format!("{target} --loss 100% --remote {} --direction ingress", service.ip());
        let injector = Injector::start(&lab.left, &line);
        assert_eq!(send(service, Some(&cgroup)), 0, "{target}");
        // Connection tracking would go on translating what the same ports exchange.
        lab.left.run("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=0");
        lab.left.run("nft flush ruleset");
        let beside = if target.starts_with("--cgroup") { None } else { Some(&cgroup) };
        assert_eq!(send(backend, beside), DATAGRAMS, "{target}");
        assert_eq!(send(backend, Some(&cgroup)), DATAGRAMS, "{target}");
        assert_eq!(injector.stop().total.matched, DATAGRAMS, "{target}");
        assert!(translate(&lab.left, &lab.right));
    }
    drop(server);
}
