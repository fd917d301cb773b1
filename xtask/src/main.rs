//! `cargo xtask`: what cargo cannot do alone.

fn main() {}
