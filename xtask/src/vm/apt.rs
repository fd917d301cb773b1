//! Downloads Debian packages from this machine's mirror without changing its apt configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::output_of;

/// A separate apt configuration with one suite.
pub struct Apt {
    configuration: PathBuf,
}

impl Apt {
    /// Creates the configuration in `folder` and downloads the suite's package lists.
    pub fn new(folder: &Path, suite: &str) -> Result<Self> {
        for name in ["sources", "lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let source = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            mirror()?
        );
        fs::write(folder.join("sources/vm.sources"), source)?;
        let configuration = folder.join("apt.conf");
        let folder = folder.display();
        fs::write(
            &configuration,
            format!(
                "Dir::Etc::SourceList \"/dev/null\";\n\
                 Dir::Etc::SourceParts \"{folder}/sources\";\n\
                 Dir::State::Lists \"{folder}/lists\";\n\
                 Dir::Cache \"{folder}\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Sandbox::User \"root\";\n"
            ),
        )?;
        let apt = Self { configuration };
        output_of(apt.command("apt-get").args(["--quiet", "--quiet", "update"]))?;
        Ok(apt)
    }

    /// The names of packages with this prefix.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = output_of(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(String::from).collect())
    }

    /// Downloads a package and unpacks it into `folder`.
    pub fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        let fetched = folder.join("package");
        fs::create_dir_all(&fetched)?;
        let mut download = self.command("apt-get");
        output_of(download.args(["--quiet", "download", package]).current_dir(&fetched))?;
        let file = fs::read_dir(&fetched)?.next().context("apt-get download left no file")??;
        output_of(Command::new("dpkg-deb").arg("--extract").arg(file.path()).arg(folder))?;
        fs::remove_dir_all(&fetched)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration);
        command
    }
}

/// The mirror of this machine's own release.
fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("no VERSION_CODENAME in /etc/os-release")?;
    let targets = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CODENAME) $(REPO_URI)",
    ]))?;
    let prefix = format!("{codename} ");
    let uri = targets.lines().find_map(|line| line.strip_prefix(&prefix));
    let uri = uri.with_context(|| {
        format!("apt has no source for {codename}, whose mirror provides the kernels: try apt-get update")
    })?;
    Ok(uri.to_owned())
}
