//! What is done to a packet, one file an impairment.

pub mod checksum;
pub mod corrupt;
pub mod duplicate;
pub mod reset;
