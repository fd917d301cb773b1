//! Values with parameters, which are written in two forms: as text, `50ms,jitter=10ms`, and in files and requests also
//! as an object, `{time: 50ms, jitter: 10ms}`. Both are read by the same code.

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

use super::value::{ValueError, from_text, text_schema};

/// A parameter of a value.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in both forms. The first parameter comes without it in text.
    pub name: &'static str,
    /// Another name for it.
    pub alias: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
    /// What its text looks like, if that is known; bare numbers are not taken for it.
    pub pattern: Option<&'static str>,
}

impl Parameter {
    /// A parameter of any text.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, alias: None, help, pattern: None }
    }

    /// A percentage.
    #[must_use]
    pub const fn percent(name: &'static str, help: &'static str) -> Self {
        Self { pattern: Some("^[0-9.]+ *%$"), ..Self::new(name, help) }
    }

    /// The same with another name beside its own.
    #[must_use]
    pub const fn or(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }

    fn has_name(&self, name: &str) -> bool {
        self.name == name || self.alias == Some(name)
    }

    fn schema(&self) -> Schema {
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
    /// Why it cannot be read.
    type Error: Display + From<ValueError>;

    /// What it is, with its article.
    const NAME: &'static str;
    /// How its text is made up.
    const SYNTAX: &'static str;
    /// Texts that show this.
    const EXAMPLE: &'static str;
    /// Its parameters, in the order in which they are written.
    const PARAMETERS: &'static [Parameter];
    /// What its text looks like, if bare numbers are not taken for it.
    const PATTERN: Option<&'static str> = None;
    /// So many of them, from the first on, must be given.
    const REQUIRED: usize = 1;
    /// No parameter is named in text: they come in their order.
    const POSITIONAL: bool = false;

    /// Reads its parameters.
    fn from_parameters(given: &Given) -> Result<Self, Self::Error>;

    /// Its parameters, without those that are as they are if left out.
    fn parameters(&self) -> Vec<(&'static str, String)>;

    /// Takes its text apart.
    fn split(text: &str) -> Result<Given<'_>, Self::Error> {
        split::<Self>(text).ok_or_else(|| malformed::<Self>(text).into())
    }

    /// Puts its text together.
    #[must_use]
    fn join(parameters: &[(&'static str, String)]) -> String {
        let first = Self::PARAMETERS.first().map(|first| first.name);
        let write = |(name, value): &(&'static str, String)| {
            let is_bare = Self::POSITIONAL || Some(*name) == first;
            if is_bare { value.clone() } else { format!("{name}={value}") }
        };
        parameters.iter().map(write).collect::<Vec<_>>().join(",")
    }

    /// The value as an object.
    #[must_use]
    fn to_object(&self) -> Json {
        let entries = self.parameters().into_iter();
        Json::Object(entries.map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The error for text that is not made up as such a value is.
#[must_use]
pub fn malformed<V: Value>(text: &str) -> ValueError {
    ValueError::Malformed {
        text: text.into(),
        name: V::NAME,
        syntax: V::SYNTAX,
        example: V::EXAMPLE,
    }
}

/// The parameters of a value, as they are written.
#[derive(Debug)]
pub struct Given<'a> {
    text: Cow<'a, str>,
    values: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Given<'a> {
    /// None, of a value that is written so.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// The value as text, for errors.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A parameter, if it is given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// Whether a parameter is given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A parameter, read, if it is given.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, T::Err> {
        self.get(name).map(str::parse).transpose()
    }

    /// A parameter that must be given.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T, T::Err> {
        self.get(name).unwrap_or_default().parse()
    }

    /// Adds a parameter; whether it is the first of its name.
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
        let (name, value) = part.split_once('=').filter(|(_, value)| !value.is_empty())?;
        let parameter = V::PARAMETERS.iter().find(|parameter| parameter.has_name(name))?;
        // The first one has no name in text.
        if std::ptr::eq(parameter, &raw const V::PARAMETERS[0]) || !given.add(parameter.name, value)
        {
            return None;
        }
    }
    missing::<V>(|name| given.has(name)).is_none().then_some(given)
}

/// The first parameter that is not given and must be.
fn missing<V: Value>(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    V::PARAMETERS.iter().take(V::REQUIRED).map(|required| required.name).find(|name| !has(name))
}

/// Reads a value from text or an object.
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

/// What is expected of a value.
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
        let Some(Scalar(text)) = map.next_value()? else { continue };
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

/// Text, or a number as text.
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

/// Implements parsing, printing, serde and the schema of types that are [`Value`]s. They are written out as text.
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
