//! The programs of the testbed; with this, `cargo test` builds them.

use std::process::Command;

use testbed::program;

#[test]
fn each_program_refuses_an_unknown_command() {
    for name in ["traffic", "clock", "clockcalls", "subject"] {
        let output = Command::new(program(name)).arg("unknown").output().expect("it can be run");
        assert!(!output.status.success(), "{name}: {output:?}");
    }
}
