//! Values with parameters.
//!
//! They have two forms: text such as `50ms,jitter=10ms`, and, in files and requests only, an object
//! such as `{time: 50ms, jitter: 10ms}`. The same code reads both.

use std::{
    borrow::Cow,
    fmt::{self, Display, Formatter},
    marker::PhantomData,
    str::FromStr,
};

use schemars::{Schema, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::{Map, Value as Json, json};

use super::value::{PERCENT, ValueError, WITH_UNIT, from_text, text_schema};

/// A parameter of a value.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Name in both forms. In text, the first parameter is written without its name.
    pub name: &'static str,
    /// Alternative name.
    pub alias: Option<&'static str>,
    /// Help text.
    pub help: &'static str,
    /// Pattern of the text, if there is one; bare numbers are then refused.
    pub pattern: Option<&'static str>,
    /// Whether the parameter is a switch: its name alone in text, a boolean in objects.
    pub is_switch: bool,
}

/// The text of a switch in [`Given`].
const ON: &str = "true";

impl Parameter {
    /// A parameter with arbitrary text.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, alias: None, help, pattern: None, is_switch: false }
    }

    /// A percentage.
    #[must_use]
    pub const fn percent(name: &'static str, help: &'static str) -> Self {
        Self { pattern: Some(PERCENT), ..Self::new(name, help) }
    }

    /// An amount with a unit.
    #[must_use]
    pub const fn amount(name: &'static str, help: &'static str) -> Self {
        Self { pattern: Some(WITH_UNIT), ..Self::new(name, help) }
    }

    /// A switch.
    #[must_use]
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { is_switch: true, ..Self::new(name, help) }
    }

    /// Adds an alternative name.
    #[must_use]
    pub const fn or(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }

    fn has_name(&self, name: &str) -> bool {
        self.name == name || self.alias == Some(name)
    }

    fn schema(&self) -> Schema {
        if self.is_switch {
            return json_schema!({"description": self.help, "type": "boolean"});
        }
        text_schema(self.help, self.pattern)
    }
}

/// The correlation of packet faults.
pub const CORRELATION: Parameter = Parameter::percent(
    "corr",
    "Correlation of the decision about one packet with that about the next, 0% to 99.99%.",
)
.or("correlation");

/// The distribution of a jitter.
pub const DISTRIBUTION: Parameter = Parameter::new(
    "dist",
    "Distribution of the jitter: uniform (default), normal, pareto, paretonormal or a file.",
)
.or("distribution");

/// A value with parameters.
pub trait Value: Sized {
    /// Error for an invalid value.
    type Error: Display + From<ValueError>;

    /// Name of the value with its article.
    const NAME: &'static str;
    /// Syntax of the text form.
    const SYNTAX: &'static str;
    /// Example texts.
    const EXAMPLE: &'static str;
    /// The parameters, in the order of the text form.
    const PARAMETERS: &'static [Parameter];
    /// Pattern of the text, if bare numbers are refused.
    const PATTERN: Option<&'static str> = Self::PARAMETERS[0].pattern;
    /// Number of required parameters, counted from the first.
    const REQUIRED: usize = 1;
    /// Whether all parameters in text are positional.
    const POSITIONAL: bool = false;

    /// Builds the value from its parameters.
    fn from_parameters(given: &Given) -> Result<Self, Self::Error>;

    /// The parameters, without those that have their default.
    fn parameters(&self) -> Vec<(&'static str, String)>;

    /// Splits the text form into parameters.
    fn split(text: &str) -> Result<Given<'_>, Self::Error> {
        split::<Self>(text).ok_or_else(|| malformed::<Self>(text).into())
    }

    /// Joins parameters into the text form.
    #[must_use]
    fn join(parameters: &[(&'static str, String)]) -> String {
        let first = Self::PARAMETERS.first().map(|first| first.name);
        let write = |(name, value): &(&'static str, String)| {
            let is_bare = Self::POSITIONAL || Some(*name) == first;
            if is_bare {
                value.clone()
            } else if is_switch::<Self>(name) {
                (*name).to_owned()
            } else {
                format!("{name}={value}")
            }
        };
        parameters.iter().map(write).collect::<Vec<_>>().join(",")
    }

    /// The object form of the value.
    #[must_use]
    fn to_object(&self) -> Json {
        let entries = self.parameters().into_iter();
        let entry = |(name, value): (&str, String)| {
            (name.into(), if is_switch::<Self>(name) { true.into() } else { value.into() })
        };
        Json::Object(entries.map(entry).collect())
    }
}

/// Whether the parameter of this name is a switch.
fn is_switch<V: Value>(name: &str) -> bool {
    V::PARAMETERS.iter().any(|parameter| parameter.name == name && parameter.is_switch)
}

/// The error for text that does not match the value's syntax.
#[must_use]
pub fn malformed<V: Value>(text: &str) -> ValueError {
    ValueError::Malformed {
        text: text.into(),
        name: V::NAME,
        syntax: V::SYNTAX,
        example: V::EXAMPLE,
    }
}

/// The parameters of a value, as given.
#[derive(Debug)]
pub struct Given<'a> {
    text: Cow<'a, str>,
    values: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Given<'a> {
    /// Creates an empty set of parameters; `text` is the value as given.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// The text of the value, for errors.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text of a parameter, if given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// Whether a parameter is given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Parses a parameter, if given.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, T::Err> {
        self.get(name).map(str::parse).transpose()
    }

    /// Parses a required parameter.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T, T::Err> {
        self.get(name).unwrap_or_default().parse()
    }

    /// Adds a parameter. Returns whether its name is new.
    pub fn add(&mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> bool {
        let is_new = !self.has(name);
        self.values.push((name, value.into()));
        is_new
    }
}

fn split<V: Value>(text: &str) -> Option<Given<'_>> {
    let mut given = Given::new(text);
    for (number, part) in text.split(',').map(str::trim).enumerate() {
        let is_named = || {
            let name = part.split_once('=').map(|(name, _)| name);
            name.is_some_and(|name| V::PARAMETERS.iter().any(|known| known.has_name(name)))
        };
        let is_first = number == 0 && (V::REQUIRED > 0 || !is_named());
        if is_first || V::POSITIONAL {
            given.add(V::PARAMETERS.get(number)?.name, part);
            continue;
        }
        let (name, value) = if is_switch::<V>(part) {
            (part, ON)
        } else {
            part.split_once('=')
                .filter(|(name, value)| !value.is_empty() && !is_switch::<V>(name))?
        };
        let parameter = V::PARAMETERS.iter().find(|parameter| parameter.has_name(name))?;
        // In text, the first parameter has no name.
        if std::ptr::eq(parameter, &raw const V::PARAMETERS[0]) || !given.add(parameter.name, value)
        {
            return None;
        }
    }
    missing::<V>(|name| given.has(name)).is_none().then_some(given)
}

/// The first required parameter that is missing.
fn missing<V: Value>(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    V::PARAMETERS.iter().take(V::REQUIRED).map(|required| required.name).find(|name| !has(name))
}

/// Deserialises a value from text or an object.
pub fn deserialize<'de, V, D>(deserializer: D) -> Result<V, D::Error>
where
    V: Value + FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    struct Either<V>(PhantomData<V>);

    impl<'de, V: Value + FromStr<Err: Display>> Visitor<'de> for Either<V> {
        type Value = V;

        fn expecting(&self, f: &mut Formatter) -> fmt::Result {
            f.write_str(&expected::<V>())
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<V, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<V, E> {
            from_text(de::value::BoolDeserializer::new(value), &expected::<V>())
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<V, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<V, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<V, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V, A::Error> {
            from_map(map)
        }
    }

    deserializer.deserialize_any(Either(PhantomData))
}

/// The expected input, for errors.
fn expected<V: Value>() -> String {
    format!("{} such as {}", V::NAME, V::EXAMPLE)
}

fn from_map<'de, V: Value, A: MapAccess<'de>>(mut map: A) -> Result<V, A::Error> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    while let Some(key) = map.next_key::<Cow<str>>()? {
        let Some(parameter) = V::PARAMETERS.iter().find(|known| known.has_name(&key)) else {
            let names: Vec<_> =
                V::PARAMETERS.iter().map(|known| format!("`{}`", known.name)).collect();
            let message =
                format!("unknown field `{key}` of {}, expected {}", V::NAME, names.join(", "));
            return Err(de::Error::custom(message));
        };
        let name = parameter.name;
        let text = if parameter.is_switch {
            map.next_value::<Option<bool>>()?.filter(|is_on| *is_on).map(|_| Scalar(ON.into()))
        } else {
            map.next_value()?
        };
        let Some(Scalar(text)) = text else { continue };
        let wrong = |what| de::Error::custom(format!("`{key}` of {} {what}", V::NAME));
        let text = text.trim();
        if text.is_empty() {
            return Err(wrong("is empty"));
        }
        if text.contains(',') {
            return Err(wrong("contains a comma, which is not allowed there"));
        }
        if found.iter().any(|(known, _)| *known == name) {
            return Err(wrong("is given twice"));
        }
        found.push((name, text.to_owned()));
    }
    let place = |name: &str| V::PARAMETERS.iter().position(|known| known.name == name);
    found.sort_by_key(|(name, _)| place(name));
    if let Some(name) = missing::<V>(|name| found.iter().any(|(known, _)| *known == name)) {
        return Err(de::Error::missing_field(name));
    }
    let mut given = Given::new(V::join(&found));
    for (name, value) in found {
        given.add(name, value);
    }
    V::from_parameters(&given).map_err(de::Error::custom)
}

/// Text, or a number converted to text.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "text or a number").map(Self)
    }
}

/// The schema of both forms.
#[must_use]
pub fn schema<V: Value>() -> Schema {
    let mut properties = Map::new();
    for parameter in V::PARAMETERS {
        properties.insert(parameter.name.into(), parameter.schema().to_value());
        if let Some(alias) = parameter.alias {
            let schema =
                text_schema(&format!("The same as {}.", parameter.name), parameter.pattern);
            properties.insert(alias.into(), schema.to_value());
        }
    }
    let mut text = text_schema(V::SYNTAX, V::PATTERN);
    text.insert("examples".into(), json!(V::EXAMPLE.split(" or ").collect::<Vec<_>>()));
    let mut object =
        json!({"type": "object", "properties": properties, "additionalProperties": false});
    let required: Vec<_> = V::PARAMETERS.iter().take(V::REQUIRED).map(|it| it.name).collect();
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    json_schema!({"description": format!("{}, as text or as an object", V::NAME), "anyOf": [text, object]})
}

/// Implements parsing, printing, serde and the schema for [`Value`] types. Serialises them as text.
macro_rules! values {
    ($($type:ty),+ $(,)?) => {$(
        impl std::str::FromStr for $type {
            type Err = <Self as $crate::spec::parameters::Value>::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                use $crate::spec::parameters::Value as _;
                Self::from_parameters(&Self::split(text)?)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                use $crate::spec::parameters::Value as _;
                f.write_str(&Self::join(&self.parameters()))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::spec::parameters::deserialize(deserializer)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $crate::spec::parameters::schema::<Self>()
            }
        }
    )+};
}
pub(super) use values;
