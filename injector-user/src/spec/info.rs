//! Metadata of a fault: its option, its help, and its trial.

use std::time::Duration;

/// Metadata of a fault or of an option that modifies one.
#[derive(Debug)]
pub struct Info {
    /// Name of the option without dashes, which is also the key in files and requests.
    pub name: &'static str,
    /// Syntax of the value; empty for a switch.
    pub value: &'static str,
    /// Short form of `value` for usage lines; if empty, `value` is used.
    pub placeholder: &'static str,
    /// One-line help.
    pub help: &'static str,
    /// Details; may be empty.
    pub detail: &'static str,
    /// Example values.
    pub examples: &'static [&'static str],
    /// Trial for `injector doctor`, if there is one.
    pub trial: Option<Trial>,
    /// What else serves where the fault is not available; may be empty.
    pub instead: &'static str,
}

impl Info {
    /// A base for struct update syntax.
    pub const DEFAULT: Self = Self {
        name: "",
        value: "",
        placeholder: "",
        help: "",
        detail: "",
        examples: &[],
        trial: None,
        instead: "",
    };

    /// The description in schemas.
    #[must_use]
    pub fn description(&self) -> String {
        if self.value.is_empty() {
            self.long_help()
        } else {
            format!("{}\n\nAs text: {}", self.long_help(), self.value)
        }
    }

    /// Name of the value in usage lines.
    #[must_use]
    pub const fn value_name(&self) -> &'static str {
        if self.placeholder.is_empty() { self.value } else { self.placeholder }
    }

    /// Long help of the option, for `--help`.
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

/// A trial of a fault: the options of injector, and the expected effect.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// The options.
    pub options: &'static str,
    /// The expected effect.
    pub effect: Effect,
}

/// The observable effect of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// A packet does not arrive.
    Lost,
    /// A packet arrives twice.
    Twice,
    /// Of this number of packets, the last one arrives at least this late.
    Late(usize, Duration),
    /// A packet arrives immediately, although others are held for long.
    Early,
    /// An ECN-capable packet arrives, although it would be dropped otherwise.
    Marked,
    /// A connection is reset.
    Reset,
    /// A sender learns that its packet is too big for the path.
    TooBig,
    /// A process of this command observes the effect itself.
    Process,
}

/// Defines the type of options and keys from a table of faults.
///
/// The fields of the faults come between the fields `before` and `after`. Each row of the table has
/// the field with additional attributes, the type that describes the fault, and the type of the
/// field.
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
            /// Interpolates towards `to`; `part` is from 0 to 1. Values that are not amounts must
            /// be equal.
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

        /// The rows of the table, in order.
        pub static FAULTS: &[&$info] = &[$(&<$fault as $trait>::INFO),*];
    };
}
pub(super) use fault_spec;
