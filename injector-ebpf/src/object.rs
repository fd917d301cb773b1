//! What every object must have.

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here can panic; the verifier refuses a program in which this loop can be reached.
    loop {}
}

/// Many helpers are for programs under the GPL only: those for sockets, checksums, signals, and other memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
