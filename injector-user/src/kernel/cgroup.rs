//! A cgroup as eBPF programs know it.

/// Identifies a cgroup to the programs of a process: they compare the ancestor at `level` with `id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupKey {
    /// Its id, as `bpf_get_current_ancestor_cgroup_id` returns it.
    pub id: u64,
    /// Its depth below the hierarchy's root.
    pub level: u32,
}
