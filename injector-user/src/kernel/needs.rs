//! What a mechanism requires of the kernel, and what of it the running kernel lacks.

use std::{collections::HashMap, sync::OnceLock};

use procfs::{ConfigSetting, sys::kernel::Version};

/// Requirements of a mechanism.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Major and minor version of Linux.
    pub linux: (u8, u8),
    /// Options of the kernel's configuration.
    pub options: &'static [&'static str],
    /// Modules that provide the mechanism where they are not built in.
    pub modules: &'static [&'static str],
    /// What would help besides; may be empty.
    pub other: &'static str,
}

/// The running kernel.
struct Kernel {
    version: Option<Version>,
    /// The configuration, if it is known.
    options: Option<HashMap<String, ConfigSetting>>,
}

impl Needs {
    /// No requirements.
    pub const NONE: Self = Self { linux: (0, 0), options: &[], modules: &[], other: "" };

    /// Requirements that are none of the kernel's.
    #[must_use]
    pub const fn other(other: &'static str) -> Self {
        Self { other, ..Self::NONE }
    }

    /// What the running kernel lacks, in words; empty if it has everything.
    #[must_use]
    pub fn lacking(&self) -> String {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        self.lacking_in(KERNEL.get_or_init(|| Kernel {
            version: Version::current().ok(),
            options: procfs::kernel_config().ok(),
        }))
    }

    fn lacking_in(&self, kernel: &Kernel) -> String {
        let (major, minor) = self.linux;
        let mut parts = Vec::new();
        if kernel.version.is_none_or(|version| version < Version::new(major, minor, 0)) {
            parts.push(format!("Linux {major}.{minor} or later"));
        }
        let setting = |option: &str| kernel.options.as_ref().and_then(|all| all.get(option));
        let lacking: Vec<&str> =
            self.options.iter().copied().filter(|option| setting(option).is_none()).collect();
        if !lacking.is_empty() {
            let unknown = if kernel.options.is_none() {
                " (the configuration of this one is not known)"
            } else {
                ""
            };
            parts.push(format!("a kernel with {}{unknown}", lacking.join(", ")));
        }
        let is_module = |option: &&str| matches!(setting(option), Some(ConfigSetting::Module));
        if lacking.is_empty() && self.options.iter().any(is_module) {
            parts.extend(self.modules.iter().map(|module| format!("modprobe {module}")));
        }
        if !self.other.is_empty() {
            parts.push(self.other.into());
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FQ: Needs = Needs {
        linux: (6, 1),
        options: &["CONFIG_NET_SCH_FQ", "CONFIG_NET"],
        modules: &["sch_fq"],
        other: "",
    };

    fn kernel(version: (u8, u8), options: Option<&[(&str, ConfigSetting)]>) -> Kernel {
        let options = options.map(|options| {
            options.iter().map(|(name, setting)| ((*name).to_owned(), setting.clone())).collect()
        });
        Kernel { version: Some(Version::new(version.0, version.1, 3)), options }
    }

    #[test]
    fn only_what_is_lacking_is_named() {
        use ConfigSetting::{Module, Yes};

        let all = [("CONFIG_NET_SCH_FQ", Yes), ("CONFIG_NET", Yes)];
        let module = [("CONFIG_NET_SCH_FQ", Module), ("CONFIG_NET", Yes)];
        let none = "a kernel with CONFIG_NET_SCH_FQ, CONFIG_NET";
        for (kernel, lacking) in [
            (kernel((6, 1), Some(&all)), String::new()),
            (kernel((6, 12), Some(&module)), "modprobe sch_fq".into()),
            (kernel((6, 1), Some(&all[1..])), "a kernel with CONFIG_NET_SCH_FQ".into()),
            (kernel((5, 10), Some(&all)), "Linux 6.1 or later".into()),
            (kernel((5, 10), Some(&[])), format!("Linux 6.1 or later; {none}")),
            (kernel((7, 0), None), format!("{none} (the configuration of this one is not known)")),
        ] {
            assert_eq!(FQ.lacking_in(&kernel), lacking);
        }
        let other = Needs::other("mount /proc");
        assert_eq!(other.lacking_in(&kernel((6, 1), Some(&[]))), "mount /proc");
    }
}
