//! Kubernetes pods, by name or by label selector.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use super::TargetError;
use crate::spec::value::serde_as_text;

serde_as_text! {
    PodName: "a pod, as namespace/name",
    PodSelection: "pods, as namespace/selector",
}

/// The name of a Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod in its namespace.
    pub name: String,
}

impl FromStr for PodName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(TargetError::Pod(text.into())),
        }
    }
}

impl Display for PodName {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Maximum length of a label selector.
const MAX_SELECTOR: usize = 4096;

/// Kubernetes pods selected by labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSelection {
    /// Namespace of the pods.
    pub namespace: String,
    /// Label selector in the syntax of `kubectl --selector`. The API server parses it.
    pub selector: String,
}

impl FromStr for PodSelection {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        // A label key may contain a slash as well, as in app.kubernetes.io/name.
        let (namespace, selector) =
            text.split_once('/').ok_or_else(|| TargetError::Pods(text.into()))?;
        let is_namespace = !namespace.is_empty()
            && namespace.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        let selector = selector.trim();
        if !is_namespace || selector.is_empty() || selector.len() > MAX_SELECTOR {
            return Err(TargetError::Pods(text.into()));
        }
        Ok(Self { namespace: namespace.into(), selector: selector.into() })
    }
}

impl Display for PodSelection {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.selector)
    }
}
