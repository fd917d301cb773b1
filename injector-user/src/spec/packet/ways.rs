//! Values that may differ between the directions of a link, as its user sees it: down and up.

use std::{borrow::Cow, fmt::Display, marker::PhantomData, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        DeserializeOwned, Error as _, IntoDeserializer, MapAccess, Visitor, value::MapDeserializer,
    },
};
use serde_json::{Value as Json, json};

use super::Field;
use crate::spec::{interpolate::Interpolate, parameters, parameters::Value, rule::Direction};

/// Name of the received direction.
const DOWN: &str = "down";
/// Name of the sent direction.
const UP: &str = "up";

/// A value of both directions, or one of each.
#[derive(Clone, Debug, PartialEq)]
pub enum Ways<T> {
    /// The same in both directions.
    Both(T),
    /// At least one is given.
    Each {
        /// For received packets.
        down: Option<T>,
        /// For sent packets.
        up: Option<T>,
    },
}

impl<T: Clone> Ways<T> {
    /// Whether the directions differ.
    pub const fn differ(&self) -> bool {
        matches!(self, Self::Each { .. })
    }

    /// The value of one direction.
    #[must_use]
    pub fn of(&self, direction: Direction) -> Option<Self> {
        let value = match self {
            Self::Both(value) => Some(value),
            Self::Each { down, .. } if direction == Direction::Ingress => down.as_ref(),
            Self::Each { up, .. } => up.as_ref(),
        };
        value.cloned().map(Self::Both)
    }
}

impl<T: Display> Ways<T> {
    /// The text form.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Both(value) => value.to_string(),
            Self::Each { down, up } => {
                let text = |(name, value): (&str, &Option<T>)| {
                    value.as_ref().map(|value| format!("{name}={value}"))
                };
                [(DOWN, down), (UP, up)].into_iter().filter_map(text).collect::<Vec<_>>().join(",")
            }
        }
    }
}

/// The direction that a part of a text begins.
fn begins(part: &str) -> Option<(&'static str, &str)> {
    let (name, rest) = part.trim_start().split_once('=')?;
    [DOWN, UP].into_iter().find(|known| *known == name).map(|known| (known, rest))
}

impl<T: Value + FromStr<Err = <T as Value>::Error>> FromStr for Ways<T> {
    type Err = <T as Value>::Error;

    /// Parameters after `down=` or `up=` belong to that direction.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut given: Vec<(&str, String)> = Vec::new();
        for part in text.split(',') {
            if let Some((name, rest)) = begins(part) {
                if given.iter().any(|(known, _)| *known == name) {
                    return Err(parameters::malformed::<T>(text).into());
                }
                given.push((name, rest.into()));
            } else if let Some((_, value)) = given.last_mut() {
                value.push(',');
                value.push_str(part);
            } else {
                return text.parse().map(Self::Both);
            }
        }
        let of = |name| {
            let text = given.iter().find(|(known, _)| *known == name).map(|(_, text)| text);
            text.map(|text| text.parse::<T>()).transpose()
        };
        Ok(Self::Each { down: of(DOWN)?, up: of(UP)? })
    }
}

impl<T: Display> Serialize for Ways<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de, T> Deserialize<'de> for Ways<T>
where
    T: Value + DeserializeOwned + FromStr<Err = <T as Value>::Error>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyForm(PhantomData))
    }
}

/// Reads text or an object.
struct AnyForm<T>(PhantomData<T>);

/// Passes a scalar on to the type of the value.
macro_rules! scalars {
    ($($visit:ident: $type:ty),+) => {$(
        fn $visit<E: serde::de::Error>(self, value: $type) -> Result<Ways<T>, E> {
            T::deserialize(value.into_deserializer()).map(Ways::Both)
        }
    )+};
}

impl<'de, T> Visitor<'de> for AnyForm<T>
where
    T: Value + DeserializeOwned + FromStr<Err = <T as Value>::Error>,
{
    type Value = Ways<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} such as {}", T::NAME, T::EXAMPLE)
    }

    scalars!(visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64);

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Ways<T>, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ways<T>, A::Error> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        if !entries.iter().any(|(name, _)| [DOWN, UP].contains(&name.as_str())) {
            let object = MapDeserializer::new(entries.into_iter());
            return T::deserialize(object)
                .map(Ways::Both)
                .map_err(|error: serde_json::Error| A::Error::custom(error));
        }
        let (mut down, mut up) = (None, None);
        for (name, value) in entries {
            let way = match name.as_str() {
                DOWN => &mut down,
                UP => &mut up,
                _ => {
                    let message = format!(
                        "unknown field `{name}` beside `down` and `up`, each of which is {}",
                        T::NAME
                    );
                    return Err(A::Error::custom(message));
                }
            };
            if way.is_some() {
                return Err(A::Error::custom(format!("`{name}` of {} is given twice", T::NAME)));
            }
            *way = Some(T::deserialize(value).map_err(A::Error::custom)?);
        }
        Ok(Ways::Each { down, up })
    }
}

impl<T: Value + JsonSchema> JsonSchema for Ways<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OfWays", T::schema_name()).into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let same = parameters::schema::<T>();
        let mut forms = same.get("anyOf").and_then(Json::as_array).cloned().unwrap_or_default();
        let way =
            |of| json!({"description": format!("{} of {of} packets", T::NAME), "anyOf": forms});
        let each = json!({
            "type": "object",
            "properties": {DOWN: way("received"), UP: way("sent")},
            "additionalProperties": false,
            "minProperties": 1,
        });
        forms.push(json!({"type": "string", "pattern": "^ *(down|up)="}));
        forms.push(each);
        json_schema!({
            "description": format!("{}, as text or as an object; or one for `down` and one for `up`", T::NAME),
            "anyOf": forms,
        })
    }
}

impl<T: Interpolate> Interpolate for Ways<T> {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (Self::Both(from), Self::Both(to)) => from.between(to, part).map(Self::Both),
            (Self::Each { down, up }, Self::Each { down: to_down, up: to_up }) => {
                Some(Self::Each {
                    down: down.between(to_down, part)?,
                    up: up.between(to_up, part)?,
                })
            }
            _ => None,
        }
    }
}

/// Present if it is the same in both directions; rules with others are split first.
impl<T: Display> Field for Option<Ways<T>> {
    type Value = T;

    fn given(&self) -> Option<&T> {
        match self {
            Some(Ways::Both(value)) => Some(value),
            _ => None,
        }
    }

    fn text(&self) -> Option<String> {
        self.given().map(ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::packet::rate::Rate;

    fn parse(text: &str) -> Ways<Rate> {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn each_direction_has_its_parameters() {
        let rate = |text: &str| Some(text.parse().expect("a rate"));
        assert_eq!(parse("1mbit,queue=1s"), Ways::Both(rate("1mbit,queue=1s").expect("a rate")));
        for (text, down, up) in [
            ("down=1.6mbit,up=750kbit", rate("1600kbit"), rate("750kbit")),
            ("up=1mbit,queue=1s,down=2mbit", rate("2mbit"), rate("1mbit,queue=1s")),
            ("down=1mbit", rate("1mbit"), None),
        ] {
            let ways = parse(text);
            assert_eq!(ways, Ways::Each { down, up }, "{text}");
            let json = serde_json::to_value(&ways).expect("plain data");
            assert_eq!(serde_json::from_value::<Ways<Rate>>(json).expect("its own JSON"), ways);
        }
        for text in ["down=", "1mbit,down=2mbit", "down=1mbit,down=2mbit", "left=1mbit", ""] {
            assert!(text.parse::<Ways<Rate>>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_object_has_the_parameters_or_the_directions() {
        let read = serde_json::from_value::<Ways<Rate>>;
        assert_eq!(read(json!({"rate": "64kbit"})).expect("a rate"), parse("64kbit"));
        assert_eq!(
            read(json!({"down": {"rate": "1mbit"}, "up": "2mbit"})).expect("rates"),
            parse("down=1mbit,up=2mbit")
        );
        for (object, error) in [
            (json!({"down": "1mbit", "rate": "2mbit"}), "unknown field `rate` beside"),
            (json!({"rat": "1mbit"}), "unknown field `rat`"),
            (json!({}), "`` is not a limited rate"),
            (json!({"up": {}}), "`` is not a limited rate"),
        ] {
            let text = read(object.clone()).expect_err("invalid").to_string();
            assert!(text.starts_with(error), "{object}: {text}");
        }
    }
}
