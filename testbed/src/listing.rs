//! Everything that injector creates, as listed by the system's tools.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{INJECTOR, Lab, hierarchy};

/// The timeout of cleanup by the kernel and the guardian.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that injector creates, by the names in the output of the system's tools.
#[must_use]
pub fn listing(lab: &Lab) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in ["prog", "map", "link"] {
        let output = Command::new("bpftool").args(["-j", kind, "list"]).output().expect("bpftool");
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        found.extend(
            list.iter().map(|object| format!("{kind} {} {}", object["id"], object["name"])),
        );
    }
    for host in [&lab.left, &lab.right] {
        for command in ["tc qdisc show", "tc filter show dev veth0 ingress", "ip -o link show"] {
            let lines = host.run(command);
            found.extend(lines.lines().map(|line| format!("{} {command} {line}", host.netns)));
        }
        let settings = host.run("sysctl net.ipv4.conf.lo net.ipv4.conf.veth0");
        found.extend(settings.lines().map(|line| format!("{} {line}", host.netns)));
    }
    let namespaces = fs::read_dir("/run/netns").expect("there are some").flatten();
    found.extend(namespaces.map(|entry| format!("netns {}", entry.path().display())));
    let expedited = fs::read_to_string("/sys/kernel/rcu_expedited").unwrap_or_default();
    if !matches!(expedited.trim(), "" | "0") {
        found.insert(format!("rcu_expedited {expedited}"));
    }
    list_cgroups(&hierarchy(), &mut found);
    found
}

fn list_cgroups(path: &Path, found: &mut BTreeSet<String>) {
    found.insert(format!("cgroup {}", path.display()));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_cgroups(&entry.path(), found);
        }
    }
}

/// Waits until nothing new is left.
pub fn assert_nothing_is_left(
    before: &BTreeSet<String>,
    lab: &Lab,
    moment: &str,
    timeout: Duration,
) {
    let end = Instant::now() + timeout;
    loop {
        let left: Vec<String> = listing(lab).difference(before).cloned().collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "killed {moment}, and left is {left:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs `injector cleanup`. Returns its output.
#[must_use]
pub fn cleanup() -> String {
    let output = Command::new(INJECTOR).arg("cleanup").output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}
