//! The state of the pods that a label selector matches.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pod, or a container of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodStatus {
    /// The pod.
    pub name: String,
    /// Whether it is faulted.
    pub state: PodState,
    /// Packets that were matched.
    pub matched: u64,
    /// The name of its fault in the agent, by which metrics and the agent's API have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Why it is not; or the newest warning of its fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Whether a pod is faulted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum PodState {
    /// It cannot be.
    Failed,
    /// Not faulted yet; the agent tries again.
    Waiting,
    /// Its fault was ended through the agent's own API, and does not begin again.
    Stopped,
    /// Its only fault happens once, and has happened.
    Done,
    /// It is.
    Injecting,
}
