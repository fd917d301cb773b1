//! Packet faults.
