//! Many concurrent flows through a delay for a minute: every loss is counted and memory is stable.

use std::{fs, thread, time::Duration};

use testbed::{Family, Injector, Lab, engines, number, serve, talk};

/// Resident memory of a process in KiB.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("memory");
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size")
}

#[test]
fn a_hundred_flows_lose_nothing_in_a_minute_and_memory_stays_as_it_is() {
    const FLOWS: usize = 100;
    let lab = Lab::new();
    lab.without_segmentation();
    for engine in engines() {
        let sent_before = lab.left.segments_sent() + lab.right.segments_sent();
        let received_before = lab.left.segments_received() + lab.right.segments_received();
        let server = serve(&lab.right, None, "tcp-serve --mode sink --bind [::]:9000");
        let line = format!("--interface veth0 --engine {engine} --delay 20ms,jitter=5ms");
        let injector = Injector::start(&lab.left, &line);
        let pid = injector.process.pid().as_raw();
        let to = lab.right.at(Family::V4, 9000);
        let line = format!("tcp-flood --to {to} --connections {FLOWS} --seconds 60");
        let (flood, memory) = thread::scope(|scope| {
            let flood = scope.spawn(|| talk(&lab.left, None, &line));
            thread::sleep(Duration::from_secs(15));
            let early = resident(pid);
            thread::sleep(Duration::from_secs(40));
            (flood.join().expect("the flood"), (early, resident(pid)))
        });
        let report = server.finish();
        lab.settle();
        // A reordered acknowledgment may arrive up to 10 ms after its connection has ended.
        thread::sleep(Duration::from_millis(250));
        let sent = lab.left.segments_sent() + lab.right.segments_sent() - sent_before;
        let received =
            lab.left.segments_received() + lab.right.segments_received() - received_before;
        let summary = injector.stop();

        let streams = report["streams"].as_array().cloned().unwrap_or_default();
        assert_eq!(streams.len(), FLOWS, "{engine}");
        let bytes: u64 = streams.iter().map(|stream| number(stream, "bytes")).sum();
        assert_eq!(bytes, number(&flood, "bytes"), "{engine}");
        assert!(streams.iter().all(|stream| number(stream, "wrong") == 0), "{engine}");
        let held = summary.held.clone().expect("it holds packets");
        assert_eq!(sent - received, held.dropped + held.lost, "{engine}: {summary:?}");
        assert_eq!((held.dropped, summary.total.skipped), (0, 0), "{engine}: {summary:?}");
        let (early, late) = memory;
        assert!(late < early + 4096, "{engine}: {early} KiB became {late}");
    }
}
