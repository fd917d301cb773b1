//! Two namespaces and a veth pair between them.

use anyhow::Result;

use super::namespace::Namespace;

/// The interface of the near end, which is faulted.
pub const NEAR: &str = "near0";

/// A veth pair between two namespaces; the far end answers for all of 10.64.0.0/16.
#[derive(Debug)]
pub struct Link {
    /// The sender.
    pub near: Namespace,
    /// The receiver.
    pub far: Namespace,
}

impl Link {
    /// Creates and connects both namespaces.
    pub fn new() -> Result<Self> {
        const FAR: &str = "far0";

        let (near, far) = (Namespace::new()?, Namespace::new()?);
        let far_path = far.path();
        let far_path = far_path.to_string_lossy();
        near.ip(["link", "add", NEAR, "type", "veth", "peer", "name", FAR, "netns", &far_path])?;
        near.ip(["address", "add", "192.0.2.1/30", "dev", NEAR])?;
        far.ip(["address", "add", "192.0.2.2/30", "dev", FAR])?;
        near.ip(["link", "set", NEAR, "up"])?;
        far.ip(["link", "set", FAR, "up"])?;
        near.ip(["route", "add", "10.64.0.0/16", "via", "192.0.2.2"])?;
        far.ip(["route", "add", "local", "10.64.0.0/16", "dev", "lo"])?;
        Ok(Self { near, far })
    }
}
