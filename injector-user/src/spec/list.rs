//! Lists in files and requests: at least one element, or a single element in place of a list.
//!
//! An empty list is refused. A match without elements would match everything, so a template that
//! renders an empty list would fault more than intended.

use std::{
    fmt::{self, Formatter},
    marker::PhantomData,
};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{
        Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

/// Error for an empty list. Callers add the name of the key.
pub const EMPTY: &str =
    "this list is empty, which is not allowed: give at least one element, or leave the key out";

/// The schema of a list, or of one element in place of a list.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "it stands for the schema of what one_or_many() reads")]
pub enum OneOrMany<T> {
    /// A list.
    #[schemars(extend("minItems" = 1))]
    Many(Vec<T>),
    /// One element.
    One(T),
}

/// Deserialises a list of at least one element.
pub fn list<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let items = Vec::deserialize(deserializer)?;
    if items.is_empty() { Err(D::Error::custom(EMPTY)) } else { Ok(items) }
}

/// Deserialises a list of at least one element, or a single element in place of a list.
pub fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Either<T>(PhantomData<T>);

    fn one<'de, T, E>(value: impl IntoDeserializer<'de, E>) -> Result<Vec<T>, E>
    where
        T: Deserialize<'de>,
        E: Error,
    {
        Ok(vec![T::deserialize(value.into_deserializer())?])
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut Formatter) -> fmt::Result {
            f.write_str("one element or a list")
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<Vec<T>, E> {
            one(value)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<Vec<T>, E> {
            one(value)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<Vec<T>, E> {
            one(value)
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Vec<T>, E> {
            one(value)
        }

        fn visit_str<E: Error>(self, value: &str) -> Result<Vec<T>, E> {
            one(value)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            list(SeqAccessDeserializer::new(seq))
        }
    }

    // Serde's `untagged` would hide the reason why an element is invalid.
    deserializer.deserialize_any(Either(PhantomData))
}
