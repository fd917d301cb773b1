//! The experiments of scripts/experiments in their short form: each measures, draws, and cleans up.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use testbed::INJECTOR;

/// A running experiment, and the directory of its results.
struct Experiment {
    child: Child,
    folder: PathBuf,
    name: &'static str,
    spaces: &'static [&'static str],
}

impl Experiment {
    fn start(name: &'static str, spaces: &'static [&'static str]) -> Self {
        let folder = testbed::scratch_file();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/experiments");
        // A shell cannot trap a signal that it was started to ignore, as programs in the background are.
        let child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(format!("{root}/{name}"))
            .args(["--short", "--out"])
            .arg(&folder)
            .env("INJECTOR", INJECTOR)
            .stdin(Stdio::null())
            // A process group, as in the foreground of a terminal.
            .process_group(0)
            .spawn()
            .expect("it is there");
        Self { child, folder, name, spaces }
    }

    /// Waits for its end. Returns its table by columns.
    fn finish(&mut self, columns: &[&str]) -> Vec<Vec<String>> {
        assert!(self.child.wait().expect("it ends").success(), "{} failed", self.name);
        self.assert_gone();
        let drawn = fs::read_to_string(self.file("svg")).expect("it is drawn");
        assert!(drawn.contains("<svg") && drawn.matches("<path").count() > 5, "{drawn}");
        let table = fs::read_to_string(self.file("csv")).expect("it is written");
        let mut lines = table.lines().map(|line| line.split(',').map(str::to_owned).collect());
        let head: Vec<String> = lines.next().expect("a head");
        assert_eq!(head, columns);
        lines.collect()
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.name))
    }

    fn assert_gone(&self) {
        for space in self.spaces {
            assert!(!PathBuf::from(format!("/run/netns/{space}")).exists(), "{space} is left");
        }
    }
}

impl Drop for Experiment {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn value(text: &str) -> f64 {
    text.parse().expect("a number")
}

#[test]
fn redis_is_slower_with_latency_and_loss() {
    let spaces = &["exp-redis-server", "exp-redis-client"];
    let mut experiment = Experiment::start("redis-latency-loss", spaces);
    let columns = ["delay_ms", "loss_percent", "requests_per_second", "p50_ms", "p99_ms", "max_ms"];
    let table = experiment.finish(&columns);
    let cell = |delay: &str, loss: &str, column: usize| {
        let row = table.iter().find(|row| row[0] == delay && row[1] == loss).expect("a row");
        value(&row[column])
    };
    assert_eq!(table.len(), 4);
    // The median round trip contains both delays. TCP retransmits after at least 200 ms.
    assert!(cell("2", "0", 3) >= 4.0 && cell("0", "0", 3) < cell("2", "0", 3), "{table:?}");
    assert!(cell("0", "1", 5) >= 180.0, "{table:?}");

    // It also cleans up when interrupted as by Ctrl-C.
    for wait in [100, 1500] {
        let mut experiment = Experiment::start("redis-latency-loss", spaces);
        thread::sleep(Duration::from_millis(wait));
        let group = Pid::from_raw(experiment.child.id().cast_signed());
        killpg(group, Signal::SIGINT).expect("it runs");
        let asked = Instant::now();
        let status = experiment.child.wait().expect("it ends");
        assert!(!status.success() && asked.elapsed() < Duration::from_secs(10), "{status}");
        experiment.assert_gone();
    }
}

#[test]
fn postgres_is_slower_while_its_link_limps() {
    let spaces = &["exp-pg-server", "exp-pg-client"];
    let mut experiment = Experiment::start("postgres-limping-link", spaces);
    let columns = ["time", "seconds", "transactions_per_second", "latency_ms"];
    let table = experiment.finish(&columns);
    // It is slow from 3 s to 7 s.
    let most = |from: f64, until: f64| {
        let within = table.iter().filter(|row| (from..until).contains(&value(&row[1])));
        within.map(|row| value(&row[2])).fold(0.0, f64::max)
    };
    assert!(most(0.0, 3.5) > 4.0 * most(4.5, 6.9), "{table:?}");
    let page = fs::read_to_string(experiment.file("html")).expect("it is written");
    assert!(page.contains("limping") && page.contains("transactions_per_second"));
}

#[test]
fn redis_loses_confirmed_writes_in_a_partition_and_time_in_a_pause() {
    let _turn = testbed::ddia_turn();
    let spaces = &["ddia-1", "ddia-2", "ddia-3", "ddia-client", "ddia-net"];
    let mut experiment = Experiment::start("redis-failover", spaces);
    let table = experiment.finish(&["fault", "seconds", "confirmed", "lost", "failed"]);
    assert!(table.iter().any(|row| row[0] == "partition") && table.len() >= 16, "{table:?}");
    let path = experiment.folder.join("redis-failover-summary.csv");
    let summary = fs::read_to_string(path).expect("it is written");
    let rows: Vec<Vec<&str>> =
        summary.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let [partition, pause] = rows.as_slice() else { panic!("{summary}") };
    // Fault, confirmed writes, lost ones of these, longest gap in seconds, final primary.
    assert_eq!((partition[0], pause[0]), ("partition", "pause"));
    assert!(value(partition[2]) > 0.0 && partition[4] != "1", "{summary}");
    assert!(value(pause[3]) > 0.9 && pause[4] != "1", "{summary}");
}
