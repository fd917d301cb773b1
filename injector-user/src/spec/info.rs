//! What is known about a fault besides its values: its option, its help, how it is tried.

use std::time::Duration;

/// A fault, or an option that goes with one.
#[derive(Debug)]
pub struct Info {
    /// The option without its dashes, which is the key in files and requests.
    pub name: &'static str,
    /// What the value looks like; empty if there is none.
    pub value: &'static str,
    /// The short form of `value` for usage lines; `value` itself if empty.
    pub placeholder: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// The details; may be empty.
    pub detail: &'static str,
    /// Values as they are written.
    pub examples: &'static [&'static str],
    /// How `injector doctor` tries it, if it does.
    pub trial: Option<Trial>,
}

impl Info {
    /// To be filled in.
    pub const DEFAULT: Self = Self {
        name: "",
        value: "",
        placeholder: "",
        help: "",
        detail: "",
        examples: &[],
        trial: None,
    };

    /// What schemas say.
    #[must_use]
    pub fn description(&self) -> String {
        if self.value.is_empty() {
            self.long_help()
        } else {
            format!("{}\n\nAs text: {}", self.long_help(), self.value)
        }
    }

    /// The name of the value in usage lines.
    #[must_use]
    pub const fn value_name(&self) -> &'static str {
        if self.placeholder.is_empty() { self.value } else { self.placeholder }
    }

    /// The help of the option, for `--help`.
    #[must_use]
    pub fn option_help(&self) -> String {
        if self.placeholder.is_empty() {
            self.long_help()
        } else {
            format!("{}\n\nSyntax: {}", self.long_help(), self.value)
        }
    }

    /// Help and details.
    #[must_use]
    pub fn long_help(&self) -> String {
        if self.detail.is_empty() {
            self.help.into()
        } else {
            format!("{}\n\n{}", self.help, self.detail)
        }
    }
}

/// How a fault is tried: the options with which injector is run, and what must come of it.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// The options.
    pub options: &'static str,
    /// What is observed.
    pub effect: Effect,
}

/// What a fault does to those who try it.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// A packet does not arrive.
    Lost,
    /// A packet arrives twice.
    Twice,
    /// Of so many packets the last arrives this late, or later.
    Late(usize, Duration),
    /// A packet arrives at once though others would be held for long.
    Early,
    /// A packet that can be marked arrives though it would be lost.
    Marked,
    /// A connection is reset.
    Reset,
    /// A process of this command's observes it by itself.
    Process,
}

/// Makes the type of options and keys from a table of faults: the fields of the faults between those `before` and
/// `after`; and what follows from the table.
///
/// A row is the field, with further attributes of it, the type that describes the fault, and the type of the field.
macro_rules! fault_spec {
    (
        $(#[$meta:meta])* $name:ident by $trait:ident of $info:ty, below $heading:literal,
        [$($before:tt)*] [$($after:tt)*]
        $({ $(#[$attribute:meta])* $field:ident, $fault:ty, $type:ty })*
    ) => {
        $(#[$meta])*
        #[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name {
            $($before)*
            $(
                #[doc = concat!("See [`", stringify!($fault), "`].")]
                #[arg(
                    long,
                    value_name = <$fault as $trait>::INFO.value_name(),
                    help = <$fault as $trait>::INFO.help,
                    long_help = <$fault as $trait>::INFO.option_help(),
                    help_heading = $heading,
                )]
                #[schemars(description = <$fault as $trait>::INFO.description())]
                $(#[$attribute])*
                pub $field: $type,
            )*
            $($after)*
        }

        impl $name {
            /// What is `part` of the way to another, from 0 to 1. They must be alike but for amounts of faults.
            pub fn between(&self, to: &Self, part: f64) -> Result<Self, Difference> {
                let mut mixed = self.clone();
                $(mixed.$field = to.$field.clone();)*
                if mixed != *to {
                    return Err(Difference::first(&mixed, to));
                }
                $(mixed.$field = self.$field.between(&to.$field, part).ok_or_else(|| {
                    Difference::of(<$fault as $trait>::INFO.name, &self.$field, &to.$field)
                })?;)*
                Ok(mixed)
            }
        }

        /// The rows of the table, in its order.
        pub static FAULTS: &[&$info] = &[$(&<$fault as $trait>::INFO),*];
    };
}
pub(super) use fault_spec;
