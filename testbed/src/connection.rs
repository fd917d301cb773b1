//! TCP connections that wait for a command to transfer bytes.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use crate::{Host, Process, TestCgroup, number, serve};

/// The number of bytes that are sent and echoed.
pub const BYTES: u64 = 20_000;

/// Opens a connection to an echo server. It fails if nothing arrives for `timeout`.
pub fn hold(
    host: &Host,
    cgroup: Option<&TestCgroup>,
    to: SocketAddr,
    timeout: Duration,
) -> Process {
    let timeout = timeout.as_millis();
    let line =
        format!("tcp-connect --mode echo --hold --to {to} --bytes {BYTES} --timeout-ms {timeout}");
    serve(host, cgroup, &line)
}

/// Transfers the bytes. Returns the result.
pub fn go(mut connection: Process) -> Value {
    connection.tell("go");
    connection.finish()
}

/// Fails unless all bytes came back.
#[track_caller]
pub fn assert_whole(report: &Value) {
    assert_eq!(report["error"], Value::Null, "{report}");
    let read = &report["read"];
    assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0), "{report}");
}
