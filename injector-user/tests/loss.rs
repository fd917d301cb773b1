//! Loss.

mod support;

use support::{Injector, Lab, TestCgroup, binomial, number, serve, talk};

#[test]
fn smoke() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let receiver = serve(&lab.right, None, "udp-receive --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20% --direction egress");
    let sent = talk(&lab.left, Some(&cgroup), "udp-send --to 10.9.0.20:9000 --count 2000");
    let received = receiver.finish();
    let summary = injector.stop();
    println!("{sent} {received} {summary:?}");
    assert_eq!(number(&sent, "sent"), 2000);
    assert_eq!(summary.total.matched, 2000);
    assert_eq!(number(&received, "received"), 2000 - summary.total.dropped);
    assert!(binomial(2000, 0.2).contains(&summary.total.dropped));
}
