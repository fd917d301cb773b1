//! systemd units.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use super::TargetError;
use crate::spec::value::serde_as_text;

serde_as_text! {
    UnitName: "a systemd unit, as name or user/name"
        pattern ".",
}

/// The types of units that have processes (systemd.unit(5)).
const WITH_PROCESSES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The types of units that have none.
const WITHOUT_PROCESSES: [&str; 5] = [".target", ".timer", ".path", ".device", ".automount"];

/// Maximum length of the name of a unit.
const MAX_NAME: usize = 255;

/// The name of a systemd unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName {
    /// User name or ID of the owner of the user manager that runs the unit. Without one, the system
    /// manager or any user manager.
    pub user: Option<String>,
    /// Full name of the unit, with its type.
    pub name: String,
}

impl FromStr for UnitName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = |reason: &str| TargetError::Unit(text.into(), reason.into());
        // The name of a unit has no slash.
        let (user, name) = match text.split_once('/') {
            Some((user, name)) => (Some(user), name),
            None => (None, text),
        };
        let is_valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if user.is_some_and(str::is_empty) || name.is_empty() || !name.chars().all(is_valid) {
            return Err(wrong("write NAME or USER/NAME, with the name as `systemctl` shows it"));
        }
        if WITHOUT_PROCESSES.iter().any(|kind| name.ends_with(kind)) {
            return Err(wrong("a unit of this type has no processes"));
        }
        let has_type = WITH_PROCESSES.iter().any(|kind| name.ends_with(kind));
        let name = if has_type { name.to_owned() } else { format!("{name}.service") };
        if name.contains("@.") {
            return Err(wrong("this is a template; name an instance, such as getty@tty1"));
        }
        if name.starts_with('.') || name.len() > MAX_NAME {
            return Err(wrong("this cannot be the name of a unit"));
        }
        Ok(Self { user: user.map(Into::into), name })
    }
}

impl Display for UnitName {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{user}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_type_is_a_service() {
        for (text, expected) in [
            ("nginx", "nginx.service"),
            ("nginx.service", "nginx.service"),
            ("org.example.App", "org.example.App.service"),
            ("getty@tty1", "getty@tty1.service"),
            ("system-getty.slice", "system-getty.slice"),
            ("session-3.scope", "session-3.scope"),
            ("srv-data\\x2d1.mount", "srv-data\\x2d1.mount"),
            ("alice/app", "alice/app.service"),
            ("1000/app@x.service", "1000/app@x.service"),
        ] {
            assert_eq!(text.parse::<UnitName>().expect(text).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_unit_with_processes_is_refused() {
        let long = "x".repeat(250);
        for text in
            ["", "/", "/a", "a/", "a/b/c", "a b", "*", "a.timer", "b.target", "a@", ".a", &long]
        {
            assert!(text.parse::<UnitName>().is_err(), "{text}");
        }
    }
}
