//! Items required in every object.

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here can panic: the verifier rejects a program in which this loop is reachable.
    loop {}
}

/// Many helpers require a GPL-compatible license: those for sockets, checksums, signals, and
/// foreign memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
