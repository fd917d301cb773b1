//! Directory trees as created by the four runtimes, with both cgroup drivers.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::json;

use super::*;

/// A host's files, in a directory that is removed on drop.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("injector-containers-{}-{number}", std::process::id());
        let machine = Self { root: std::env::temp_dir().join(name) };
        fs::create_dir_all(machine.root.join("cgroup")).expect("it can be made");
        machine
    }

    fn roots(&self) -> Roots {
        Roots {
            cgroup: self.root.join("cgroup"),
            v1: vec![self.root.join("v1/cpu"), self.root.join("v1/memory")],
            run: self.root.join("run"),
            var_lib: self.root.join("var/lib"),
        }
    }

    /// Creates a cgroup, or any other directory.
    fn folder(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(&path).expect("it can be made");
        path
    }

    fn file(&self, path: &str, content: &serde_json::Value) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(path, content.to_string()).expect("it can be written");
    }

    fn find(&self, wanted: &str) -> Result<Found, ContainerError> {
        find(&self.roots(), wanted)
    }

    #[track_caller]
    fn assert_found(&self, wanted: &str, cgroup: &Path) {
        let found = self.find(wanted).unwrap_or_else(|error| panic!("{wanted}: {error}"));
        assert_eq!(found.cgroup, cgroup, "{wanted}");
        // A second lookup returns the same result.
        assert_eq!(found.wanted.find(&self.roots()), Ok(found), "{wanted}");
    }

    #[track_caller]
    fn assert_refused(&self, wanted: &str, message: &str) {
        let error = self.find(wanted).expect_err(wanted).to_string();
        assert!(error.contains(message), "{wanted}: {error}");
    }

    fn find_pod(&self, pod: &str) -> Result<PathBuf, ContainerError> {
        let found = find_pod(&self.roots(), &pod.parse().expect("a pod"))?;
        assert_eq!(found.wanted.find(&self.roots()).as_ref(), Ok(&found));
        Ok(found.cgroup)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A failure during a panic cannot be handled.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// An ID with this prefix.
fn id(beginning: &str) -> String {
    format!("{beginning:0<64}")
}

#[test]
fn docker_is_found_with_both_drivers_by_id_prefix_and_name() {
    let machine = Machine::new();
    let (web, db, old) = (id("4f5a"), id("4f5b"), id("9999"));
    let names = [(&web, "/web"), (&db, "/db"), (&old, "/old")];
    for (id, name) in names {
        machine.file(
            &format!("var/lib/docker/containers/{id}/config.v2.json"),
            &json!({
                "ID": id, "Name": name, "State": {"Running": true, "Pid": 77},
                "Config": {"Hostname": &id[..12], "Labels": null},
            }),
        );
    }
    let web_cgroup = machine.folder(&format!("cgroup/docker/{web}"));
    let db_cgroup = machine.folder(&format!("cgroup/system.slice/docker-{db}.scope"));
    machine.folder("cgroup/system.slice/docker.service");
    for (id, name, cgroup) in [(&web, "web", &web_cgroup), (&db, "db", &db_cgroup)] {
        machine.assert_found(id, cgroup);
        machine.assert_found(&id[..12], cgroup);
        machine.assert_found(&id[..4], cgroup);
        machine.assert_found(name, cgroup);
    }
    assert_eq!(machine.find("web").map(|found| found.wanted), Ok(Wanted::Name("web".into())));
    assert_eq!(machine.find("4f5a").map(|found| found.wanted), Ok(Wanted::Id(web.clone())));
    machine.assert_refused("old", "old (999900000000) does not run");
    machine.assert_refused("cache", "no container cache: there are db (4f5b00000000), web (4f5a");
    // Too short for an ID prefix.
    machine.assert_refused("4f5", "no container 4f5: there are");
    machine.assert_refused("", "no container : there are");
}

#[test]
fn what_may_be_several_containers_is_refused_with_their_names() {
    let machine = Machine::new();
    let (one, other) = (id("abcdef01"), id("abcdef02"));
    let cgroup = machine.folder(&format!("cgroup/docker/{one}"));
    machine.folder(&format!("cgroup/docker/{other}"));
    machine.assert_refused("abcdef0", "any of abcdef010000, abcdef020000: write more");
    machine.assert_found("abcdef01", &cgroup);
}

#[test]
fn a_name_comes_before_the_beginning_of_an_id() {
    let machine = Machine::new();
    let (cafe, other) = (id("cafe"), id("1234"));
    machine.folder(&format!("cgroup/docker/{cafe}"));
    let cgroup = machine.folder(&format!("cgroup/docker/{other}"));
    machine.file(
        &format!("var/lib/docker/containers/{other}/config.v2.json"),
        &json!({"ID": other, "Name": "/cafe"}),
    );
    machine.assert_found("cafe", &cgroup);
}

/// The pod's UID, and its forms in the cgroup names of both drivers.
const UID: &str = "6f0a1c52-8ad2-4c8e-9f0b-1d2e3f405162";
const SLICES: &str = "kubepods.slice/kubepods-burstable.slice/\
    kubepods-burstable-pod6f0a1c52_8ad2_4c8e_9f0b_1d2e3f405162.slice";
const FOLDERS: &str = "kubepods/burstable/pod6f0a1c52-8ad2-4c8e-9f0b-1d2e3f405162";

fn cri_containerd(machine: &Machine, state: &str, id: &str, container: Option<&str>, pod: &str) {
    let mut annotations = json!({
        "io.kubernetes.cri.container-type": if container.is_some() { "container" } else { "sandbox" },
        "io.kubernetes.cri.sandbox-id": "12",
        "io.kubernetes.cri.sandbox-name": pod,
        "io.kubernetes.cri.sandbox-namespace": "shop",
    });
    if pod == "cart-0" {
        annotations["io.kubernetes.cri.sandbox-uid"] = UID.into();
    }
    if let Some(container) = container {
        annotations["io.kubernetes.cri.container-name"] = container.into();
    }
    machine.file(
        &format!("run/{state}/io.containerd.runtime.v2.task/k8s.io/{id}/config.json"),
        &json!({"ociVersion": "1.1.0", "process": {"args": ["/bin/x"]}, "annotations": annotations}),
    );
}

#[test]
fn containerd_is_found_by_the_names_of_pods_and_their_containers() {
    // With the systemd driver, and with cgroupfs as in k3s.
    for (state, pod, prefix, suffix) in
        [("containerd", SLICES, "cri-containerd-", ".scope"), ("k3s/containerd", FOLDERS, "", "")]
    {
        let machine = Machine::new();
        let (pause, app, proxy, other) = (id("a0"), id("a1"), id("a2"), id("b1"));
        cri_containerd(&machine, state, &pause, None, "cart-0");
        cri_containerd(&machine, state, &app, Some("app"), "cart-0");
        cri_containerd(&machine, state, &proxy, Some("proxy"), "cart-0");
        cri_containerd(&machine, state, &other, Some("app"), "cart-1");
        let cgroup =
            |pod: &str, id: &str| machine.folder(&format!("cgroup/{pod}/{prefix}{id}{suffix}"));
        cgroup(pod, &pause);
        let app_cgroup = cgroup(pod, &app);
        let proxy_cgroup = cgroup(pod, &proxy);
        let other_pod = pod.replace("6f0a", "7777");
        let other_cgroup = cgroup(&other_pod, &other);

        machine.assert_found("proxy", &proxy_cgroup);
        machine.assert_found("cart-0/proxy", &proxy_cgroup);
        machine.assert_found("shop/cart-1/app", &other_cgroup);
        machine.assert_found(&app[..12], &app_cgroup);
        let either = "any of shop/cart-0/app (a10000000000), shop/cart-1/app (b10000000000)";
        machine.assert_refused("app", either);

        let pods = machine.root.join("cgroup");
        assert_eq!(machine.find_pod("shop/cart-0"), Ok(pods.join(pod)));
        // Without the UID annotation, as in containerd before 1.7.
        assert_eq!(machine.find_pod("shop/cart-1"), Ok(pods.join(other_pod)));
        let error = machine.find_pod("shop/cart-2").expect_err("there is none").to_string();
        assert_eq!(
            error,
            "there is no pod shop/cart-2 on this machine: there are shop/cart-0, shop/cart-1"
        );
    }
}

#[test]
fn cri_o_is_found_and_its_monitors_are_not_taken_for_containers() {
    for (pod, suffix) in [(SLICES, ".scope"), (FOLDERS, "")] {
        let machine = Machine::new();
        let (pause, app) = (id("c0"), id("c1"));
        for (id, name) in [(&pause, "POD"), (&app, "app")] {
            machine.file(
                &format!("run/containers/storage/overlay-containers/{id}/userdata/config.json"),
                &json!({"ociVersion": "1.0.2-dev", "annotations": {
                    "io.container.manager": "cri-o",
                    "io.kubernetes.container.name": name,
                    "io.kubernetes.pod.name": "cart-0",
                    "io.kubernetes.pod.namespace": "shop",
                    "io.kubernetes.pod.uid": UID,
                    "io.kubernetes.cri-o.ContainerType": "container",
                }}),
            );
            machine.folder(&format!("cgroup/{pod}/crio-conmon-{id}{suffix}"));
        }
        machine.file(
            "var/lib/containers/storage/overlay-containers/containers.json",
            &json!([{"id": app, "names": [format!("k8s_app_cart-0_shop_{UID}_0")], "image": "x"}]),
        );
        machine.folder(&format!("cgroup/{pod}/crio-{pause}{suffix}"));
        // crun creates a child cgroup.
        let cgroup = machine.folder(&format!("cgroup/{pod}/crio-{app}{suffix}"));
        machine.folder(&format!("cgroup/{pod}/crio-{app}{suffix}/container"));
        machine.assert_found("app", &cgroup);
        machine.assert_found("shop/cart-0/app", &cgroup);
        machine.assert_found(&format!("k8s_app_cart-0_shop_{UID}_0"), &cgroup);
        machine.assert_found(&app[..13], &cgroup);
        assert_eq!(machine.find_pod("shop/cart-0"), Ok(machine.root.join("cgroup").join(pod)));
    }
}

#[test]
fn podman_is_found_with_both_drivers_and_below_units() {
    let machine = Machine::new();
    let names = ["web", "db", "quadlet", "kept"];
    let ids: Vec<String> = (1..=4).map(|n| id(&format!("d{n}"))).collect();
    let stored = |n: usize| json!({"id": ids[n], "names": [names[n]], "layer": "l"});
    let storage = "containers/storage/overlay-containers";
    machine.file(
        &format!("var/lib/{storage}/containers.json"),
        &json!([stored(0), stored(1), {"id": id("e0"), "names": null}]),
    );
    // State of `podman run --rm`, and of a transient store.
    machine.file(&format!("var/lib/{storage}/volatile-containers.json"), &json!([stored(2)]));
    machine.file(&format!("run/{storage}/volatile-containers.json"), &json!([stored(3)]));
    let paths = [
        format!("machine.slice/libpod-{}.scope", ids[0]),
        format!("libpod_parent/libpod-{}", ids[1]),
        format!("system.slice/web.service/libpod-payload-{}", ids[2]),
        format!("machine.slice/machine-libpod_pod_{}.slice/libpod-{}.scope", id("f0"), ids[3]),
    ];
    machine.folder(&format!("cgroup/machine.slice/libpod-conmon-{}.scope", ids[0]));
    machine.folder(&format!("cgroup/libpod_parent/{}/libpod-{}", id("f1"), id("e1")));
    machine.folder("cgroup/system.slice/web.service/runtime");
    for (name, path) in names.iter().zip(&paths) {
        let cgroup = machine.folder(&format!("cgroup/{path}"));
        machine.assert_found(name, &cgroup);
    }
    // Podman's pods are not containers.
    machine.assert_refused("f1000000", "no container f1000000");
    let rootless = id("d9");
    let cgroup = machine.folder(&format!(
        "cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{rootless}.scope/container"
    ));
    machine.assert_found("d900", cgroup.parent().expect("a scope"));
}

#[test]
fn runc_and_crun_say_where_containers_of_any_name_are() {
    let machine = Machine::new();
    let roots = machine.roots();
    let here = machine.folder("cgroup/some/where");
    machine.file(
        "run/runc/redis-1/state.json",
        &json!({
            "id": "redis-1", "init_process_pid": 5,
            "cgroup_paths": {"": roots.cgroup.join("some/where"), "cpu": "/sys/fs/cgroup/cpu/x"},
            "config": {"labels": ["nerdctl/name=cache", "bundle=/bundle"]},
        }),
    );
    // Paths as seen on the host, with the hierarchy mounted elsewhere; includes both mounts of a
    // hybrid host.
    let pure = machine.folder("cgroup/default/ctr");
    let hybrid = machine.folder("cgroup/default/hybrid");
    for (name, mount) in [("ctr", "/sys/fs/cgroup"), ("hybrid", "/sys/fs/cgroup/unified")] {
        machine.file(
            &format!("run/containerd/runc/default/{name}/state.json"),
            &json!({"id": name, "cgroup_paths": {"": format!("{mount}/default/{name}")}}),
        );
    }
    let of_crun = machine.folder("cgroup/crun-cgroup");
    machine.file(
        "run/crun/mine/status",
        &json!({"pid": 6, "cgroup-path": "/crun-cgroup", "bundle": "/bundle"}),
    );
    // Version 1 only: v2 paths are the root, or missing.
    machine.file(
        "run/runc/first/state.json",
        &json!({"id": "first", "cgroup_paths": {"cpu": "/sys/fs/cgroup/cpu/first"}}),
    );
    machine.file("run/crun/second/status", &json!({"pid": 7, "cgroup-path": "/"}));
    machine.assert_found("redis-1", &here);
    machine.assert_found("cache", &here);
    machine.assert_found("ctr", &pure);
    machine.assert_found("hybrid", &hybrid);
    machine.assert_found("mine", &of_crun);
    machine.assert_refused("first", "first does not run");
    machine.assert_refused("second", "second does not run");
}

#[test]
fn a_container_of_version_1_alone_is_refused_as_such() {
    let machine = Machine::new();
    let old = id("aa11");
    machine.folder(&format!("v1/memory/docker/{old}"));
    machine.assert_refused(
        "aa11",
        &format!("in cgroups of version 1 only ({}", machine.root.display()),
    );
    machine.file(
        &format!("var/lib/docker/containers/{old}/config.v2.json"),
        &json!({"ID": old, "Name": "/old"}),
    );
    machine.assert_refused("old", "in cgroups of version 1 only");
}

#[test]
fn what_has_ended_is_not_found_though_its_cgroup_is_there() {
    let machine = Machine::new();
    let ended = id("aa22");
    let cgroup = machine.folder(&format!("cgroup/docker/{ended}"));
    fs::write(cgroup.join("cgroup.events"), "populated 0\nfrozen 0\n").expect("a file");
    machine.assert_refused("aa22", "aa2200000000 does not run");
    fs::write(cgroup.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("a file");
    machine.assert_found("aa22", &cgroup);
}

#[test]
fn a_name_is_followed_to_another_id_and_an_id_is_not() {
    let machine = Machine::new();
    let (first, second) = (id("1111"), id("2222"));
    for id in [&first, &second] {
        cri_containerd(&machine, "containerd", id, Some("app"), "cart-0");
    }
    let cgroup = machine.folder(&format!("cgroup/{FOLDERS}/{first}"));
    let by_name = machine.find("app").expect("it runs");
    let by_id = machine.find("1111").expect("it runs");
    fs::remove_dir(&cgroup).expect("it can be removed");
    assert!(by_name.wanted.find(&machine.roots()).is_err());
    let cgroup = machine.folder(&format!("cgroup/{FOLDERS}/{second}"));
    let again = by_name.wanted.find(&machine.roots()).expect("it came again");
    assert_eq!(again.cgroup, cgroup);
    assert_eq!(again.title, "container shop/cart-0/app (222200000000)");
    assert!(by_id.wanted.find(&machine.roots()).is_err());
}

#[test]
fn names_do_not_leave_the_trees_that_are_looked_through() {
    let machine = Machine::new();
    let web = id("1234");
    machine.folder(&format!("cgroup/docker/{web}"));
    machine.folder("cgroup/docker/elsewhere");
    for wanted in ["..", "../docker", "/", "docker/elsewhere", "*", "1234*", "\n"] {
        machine.assert_refused(wanted, "there is no container");
    }
    for pod in ["", "a", "a/", "/a", "a/b/c"] {
        assert!(pod.parse::<PodName>().is_err(), "{pod}");
    }
}

#[test]
fn files_that_are_not_understood_are_left_out() {
    let machine = Machine::new();
    let web = id("1234");
    let cgroup = machine.folder(&format!("cgroup/docker/{web}"));
    machine.file(&format!("var/lib/docker/containers/{web}/config.v2.json"), &json!([1, 2]));
    machine.file("var/lib/containers/storage/overlay-containers/containers.json", &json!({}));
    machine.file("run/runc/x/state.json", &json!({"id": 5}));
    machine.file("run/crun/y/status", &json!("text"));
    machine.folder("run/containerd/io.containerd.runtime.v2.task/k8s.io/z");
    machine.assert_found("1234", &cgroup);
}

#[test]
fn a_pod_whose_containers_are_not_in_one_cgroup_is_refused() {
    let machine = Machine::new();
    let (one, other) = (id("a1"), id("a2"));
    cri_containerd(&machine, "containerd", &one, Some("one"), "cart-0");
    cri_containerd(&machine, "containerd", &other, Some("other"), "cart-0");
    machine.folder(&format!("cgroup/{FOLDERS}/{one}"));
    machine.folder(&format!("cgroup/k8s.io/{other}"));
    let error = machine.find_pod("shop/cart-0").expect_err("they are scattered").to_string();
    assert!(error.contains("not in one cgroup of their own: "), "{error}");
}

/// Delegates a cgroup to a user, who may create child cgroups.
fn delegate(cgroup: &Path) {
    std::os::unix::fs::chown(cgroup, Some(1000), Some(1000)).expect("tests are root's");
}

#[test]
fn a_cgroup_is_not_believed_to_be_of_a_container_of_others() {
    let machine = Machine::new();
    let (web, db, evil) = (id("4f5a"), id("4f5b"), id("eeee"));
    for (id, name) in [(&web, "/web"), (&db, "/db"), (&evil, "/evil")] {
        machine.file(
            &format!("var/lib/docker/containers/{id}/config.v2.json"),
            &json!({"ID": id, "Name": name}),
        );
    }
    let web_cgroup = machine.folder(&format!("cgroup/kubepods.slice/a/b/docker-{web}.scope"));
    let db_cgroup = machine.folder(&format!("cgroup/system.slice/docker-{db}.scope"));
    let evil_cgroup = machine.folder(&format!("cgroup/system.slice/docker-{evil}.scope"));
    // In a user's delegated subtree, and inside a container.
    for id in [&web, &db, &evil] {
        for above in ["aaa.slice", "zzz.slice"] {
            delegate(&machine.folder(&format!("cgroup/{above}/docker-{id}.scope")));
        }
        machine.folder(&format!("cgroup/system.slice/docker-{evil}.scope/docker-{id}.scope"));
    }
    for (name, cgroup) in [("web", &web_cgroup), ("db", &db_cgroup), ("evil", &evil_cgroup)] {
        machine.assert_found(name, cgroup);
    }
    // A cgroup without processes hides no other.
    let hiding = machine.folder(&format!("cgroup/zzz/docker-{web}.scope"));
    fs::write(hiding.join("cgroup.events"), "populated 0\n").expect("a file");
    machine.assert_found("web", &web_cgroup);
    // Ambiguous cgroups are refused.
    machine.folder(&format!("cgroup/zzz/docker-{db}.scope"));
    machine.assert_refused("db", "the container db (4f5b00000000) may be in any of ");
    machine.assert_refused(&db, "name the one that is meant with --cgroup");
}

#[test]
fn what_a_runtime_says_of_a_cgroup_is_believed_before_names() {
    let machine = Machine::new();
    let web = id("1234");
    let cgroup = machine.folder(&format!("cgroup/somewhere/{web}"));
    machine.folder(&format!("cgroup/zzz/docker-{web}.scope"));
    machine.file(
        &format!("run/docker/runtime-runc/moby/{web}/state.json"),
        &json!({"id": web, "cgroup_paths": {"": format!("/sys/fs/cgroup/somewhere/{web}")}}),
    );
    machine.assert_found("1234", &cgroup);
}

#[test]
fn a_pod_is_not_believed_to_be_another_one() {
    let machine = Machine::new();
    let (cart, evil) = (id("c1"), id("c2"));
    let bundle = |id: &str, pod: &str, more: &serde_json::Value| {
        let mut annotations = json!({
            "io.kubernetes.container.name": "app",
            "io.kubernetes.pod.name": pod,
            "io.kubernetes.pod.namespace": "shop",
        });
        let all = annotations.as_object_mut().expect("an object");
        all.extend(more.as_object().expect("an object").clone());
        let labels: Vec<String> = all
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().expect("text")))
            .collect();
        machine.file(
            &format!("run/containers/storage/overlay-containers/{id}/userdata/config.json"),
            &json!({"annotations": annotations}),
        );
        // The same, as recorded by the runtime.
        machine.file(
            &format!("run/runc/{id}/state.json"),
            &json!({"id": id, "config": {"labels": labels}}),
        );
    };
    bundle(&cart, "cart-0", &json!({}));
    // CRI-O copies all pod annotations, whoever set them.
    let forged = json!({
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.sandbox-name": "cart-0",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "nerdctl/name": "database",
    });
    bundle(&evil, "evil", &forged);
    let pod = machine.folder(&format!("cgroup/{FOLDERS}"));
    let cgroup = machine.folder(&format!("cgroup/{FOLDERS}/crio-{cart}"));
    let other = FOLDERS.replace("6f0a", "7777");
    let evil_cgroup = machine.folder(&format!("cgroup/{other}/crio-{evil}"));
    machine.assert_found("cart-0/app", &cgroup);
    machine.assert_found("evil/app", &evil_cgroup);
    assert_eq!(machine.find_pod("shop/cart-0"), Ok(pod));
    machine.assert_refused("database", "there is no container database");
}

#[test]
fn names_that_would_upset_terminals_are_no_names() {
    let machine = Machine::new();
    let web = id("1234");
    machine.folder(&format!("cgroup/docker/{web}"));
    let labels = |name: &str| {
        let label = |key: &str, value: &str| (format!("io.kubernetes.{key}"), value.to_owned());
        let labels = [label("pod.name", name), label("pod.namespace", name)];
        labels.into_iter().chain([label("container.name", name)]).collect::<Vec<_>>()
    };
    for name in ["\u{1b}]0;x\u{7}", "a\nb", "\u{9b}2J", "\u{202e}", "a b", &"x".repeat(600)] {
        let labels: serde_json::Map<_, _> =
            labels(name).into_iter().map(|(key, value)| (key, value.into())).collect();
        machine.file(
            &format!("var/lib/docker/containers/{web}/config.v2.json"),
            &json!({"Name": name, "Config": {"Labels": labels}}),
        );
        let odd = json!([{"id": format!("9{name}"), "names": [name]}]);
        machine.file("var/lib/containers/storage/overlay-containers/containers.json", &odd);
        machine.assert_refused("nothing", "there is no container nothing: there are 123400000000");
        let error = machine.find_pod("a/b").expect_err("there is none").to_string();
        assert_eq!(error, "there is no pod a/b on this machine: none can be seen here");
        machine.assert_refused(name, "there is no container");
    }
}

#[test]
fn files_that_are_none_or_too_large_are_not_waited_for() {
    let machine = Machine::new();
    let web = id("1234");
    let cgroup = machine.folder(&format!("cgroup/docker/{web}"));
    let folder = machine.folder(&format!("var/lib/docker/containers/{web}"));
    let config = folder.join("config.v2.json");
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).expect("it can be made");
    machine.assert_found("1234", &cgroup);
    fs::remove_file(&config).expect("it is there");
    std::os::unix::fs::symlink("/dev/zero", &config).expect("it can be made");
    machine.assert_found("1234", &cgroup);
    fs::remove_file(&config).expect("it is there");
    // A sparse file.
    fs::File::create(&config).and_then(|file| file.set_len(1 << 40)).expect("it can be made");
    machine.assert_found("1234", &cgroup);
}

#[test]
fn a_pod_is_found_by_its_unique_id_whatever_runtimes_say() {
    let machine = Machine::new();
    let uid = "0c0ffee0-8ad2-4c8e-9f0b-1d2e3f405162";
    let name: PodName = "shop/cart-0".parse().expect("a name");
    let find = || find_pod_by_uid(&machine.roots(), &name, uid);
    let not_yet = Err(ContainerError::NotYet(name.clone()));
    assert_eq!(find(), not_yet);
    // The names of both drivers, other UIDs of the same pod name, and no UID.
    for pod in [
        format!("kubepods/burstable/pod{uid}"),
        format!(
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice",
            uid.replace('-', "_")
        ),
    ] {
        let pod = machine.folder(&format!("cgroup/{pod}"));
        assert_eq!(find(), not_yet, "nothing runs in it");
        let app = pod.join(format!("cri-containerd-{}.scope", id("a1")));
        fs::create_dir_all(&app).expect("it can be made");
        let other = id("a2");
        cri_containerd(&machine, "containerd", &other, Some("app"), "cart-0");
        machine.folder(&format!("cgroup/{FOLDERS}/{other}"));
        // A cgroup that a container creates inside itself is not mistaken for the pod.
        machine.folder(&format!("cgroup/{FOLDERS}/{other}/pod{uid}/{}", id("a3")));
        // Neither is a cgroup of a user.
        delegate(&machine.folder(&format!("cgroup/user.slice/pod{uid}")));
        machine.folder(&format!("cgroup/user.slice/pod{uid}/{}", id("a4")));
        let found = find().expect("it runs");
        assert_eq!((found.cgroup, found.title), (pod.clone(), "pod shop/cart-0".into()));
        assert_eq!(found.wanted.find(&machine.roots()).expect("it runs").cgroup, pod);
        fs::write(app.join("cgroup.events"), "populated 0\n").expect("a file");
        fs::remove_dir_all(machine.root.join("cgroup")).expect("it can be removed");
    }
}
