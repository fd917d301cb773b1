//! The kernels that tests run on: downloads and unpacks Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::apt::Apt;

/// A kernel series in Debian.
#[derive(Debug)]
pub struct Series {
    /// The name for `--kernel`.
    pub name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    /// The prefixes of its packages' names; the release follows.
    packages: &'static [&'static str],
    /// Whether injector supports it. On others, injector must fail with a clear error.
    pub is_supported: bool,
}

/// All kernel series.
pub const SERIES: &[Series] = &[
    Series { name: "5.10", suite: "bullseye", packages: &["linux-image-"], is_supported: false },
    Series { name: "6.1", suite: "bookworm", packages: &["linux-image-"], is_supported: true },
    Series {
        name: "6.12",
        suite: "bookworm-backports",
        packages: &["linux-image-"],
        is_supported: true,
    },
    Series {
        name: "7.3",
        suite: "trixie-backports",
        packages: &["linux-binary-", "linux-modules-"],
        is_supported: true,
    },
];

/// The flavour for virtual machines: small, boots in seconds.
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its series.
    pub series: &'static Series,
    /// The release, as in `uname -r`.
    pub release: String,
    /// The kernel image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Finds an unpacked kernel in the work directory, or downloads the newest one.
pub fn provide(series: &'static Series, work: &Path, fetch: bool) -> Result<Kernel> {
    let folder = work.join("kernels").join(series.name);
    if fetch || !folder.exists() {
        println!("fetching Linux {} from {}", series.name, series.suite);
        self::fetch(series, work, &folder)
            .with_context(|| format!("fetching Linux {}", series.name))?;
    }
    Kernel::find(series, &folder).with_context(|| {
        format!("{} is not a kernel; use --fetch to download it again", folder.display())
    })
}

fn fetch(series: &Series, work: &Path, folder: &Path) -> Result<()> {
    let apt = Apt::new(&work.join("apt").join(series.suite), series.suite)?;
    let first = series.packages.first().context("no package")?;
    let names = apt.names(&format!("{first}{}.", series.name))?;
    let releases = names
        .iter()
        .filter(|name| name.ends_with(FLAVOUR))
        .filter_map(|name| name.strip_prefix(first));
    let release = releases.max_by_key(|release| numbers(release)).with_context(|| {
        format!("{} has no package {first}{}.*{FLAVOUR} any more", series.suite, series.name)
    })?;
    // Rename at the end, so that an incomplete download is not taken for a kernel.
    let partial = folder.with_extension("partial");
    for gone in [&partial, folder] {
        if gone.exists() {
            fs::remove_dir_all(gone)?;
        }
    }
    for package in series.packages {
        apt.unpack(&format!("{package}{release}"), &partial)?;
    }
    fs::rename(&partial, folder)?;
    Ok(())
}

impl Kernel {
    fn find(series: &'static Series, folder: &Path) -> Result<Self> {
        let roots = ["lib/modules", "usr/lib/modules"].map(|path| folder.join(path));
        let root = roots.iter().find(|root| root.is_dir()).context("no lib/modules")?;
        let entry = fs::read_dir(root)?.next().context("lib/modules is empty")??;
        let release = entry.file_name().to_string_lossy().into_owned();
        let modules = entry.path();
        let images = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file()).context("no vmlinuz")?;
        Ok(Self { series, release, image, modules })
    }
}

/// The numbers in a release, for ordering releases.
fn numbers(release: &str) -> Vec<u64> {
    let release = release.strip_suffix(FLAVOUR).unwrap_or(release);
    let parts = release.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn releases_are_ordered_by_number() {
        let ordered = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.90+deb12-cloud-amd64",
            "6.12.90+deb12.1-cloud-amd64",
            "6.12.95+deb12-cloud-amd64",
        ];
        assert!(ordered.is_sorted_by_key(|release| numbers(release)));
    }
}
