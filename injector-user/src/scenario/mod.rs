//! Scenarios: a plan carried out on targets, and what is written down of it.

pub mod chart;
pub mod page;
pub mod run;
pub mod stage;
pub mod timeline;
