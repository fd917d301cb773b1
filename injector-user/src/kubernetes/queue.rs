//! A queue that is fair between namespaces: many resources in one do not delay those in another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Resources to reconcile, by UID.
#[derive(Debug, Default)]
pub struct Queue {
    namespaces: BTreeMap<String, VecDeque<String>>,
    queued: BTreeSet<String>,
    /// The namespace that was served last.
    last: String,
}

impl Queue {
    /// Adds a resource at the end of its namespace's queue, unless it is queued already.
    pub fn add(&mut self, namespace: &str, uid: &str) {
        if self.queued.insert(uid.into()) {
            self.namespaces.entry(namespace.into()).or_default().push_back(uid.into());
        }
    }

    /// Takes the first resource of the next namespace.
    pub fn take(&mut self) -> Option<String> {
        let namespaces = self.namespaces.keys();
        let next = namespaces.clone().find(|namespace| **namespace > self.last);
        self.last = next.or_else(|| namespaces.clone().next())?.clone();
        let queue = self.namespaces.get_mut(&self.last)?;
        let uid = queue.pop_front()?;
        if queue.is_empty() {
            self.namespaces.remove(&self.last);
        }
        self.queued.remove(&uid);
        Some(uid)
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_take_turns() {
        let mut queue = Queue::default();
        for (namespace, uid) in
            [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"), ("c", "5"), ("a", "1")]
        {
            queue.add(namespace, uid);
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(order, ["1", "4", "5", "2", "3"]);
        assert!(queue.is_empty());
        queue.add("a", "1");
        assert_eq!(queue.take().as_deref(), Some("1"));
    }
}
