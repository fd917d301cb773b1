//! Interpolation of values, for ramps.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use nix::errno::Errno;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use thiserror::Error;

use super::{
    clock::{Clocks, Offset},
    fault::{Every, Odds},
    packet::{
        corrupt::CorruptMode,
        delay::Distribution,
        profile::Profile,
        rate::{BitRate, Size},
    },
    process::{Syscall, errno::Hook, kill::SignalNumber},
    value::{HumanDuration, Percent, Remote},
};

/// A value that can be interpolated.
pub trait Interpolate: Sized {
    /// Interpolates towards `to`; `part` is from 0 to 1. Returns `None` if that is impossible.
    fn between(&self, to: &Self, part: f64) -> Option<Self>;
}

/// Implements [`Interpolate`] for values that are not amounts, which must be equal.
macro_rules! fixed {
    ($($type:ty),+ $(,)?) => {$(
        impl Interpolate for $type {
            fn between(&self, to: &Self, _: f64) -> Option<Self> {
                (self == to).then(|| self.clone())
            }
        }
    )+};
}

fixed!(bool, String, PathBuf, IpNet, Errno, &'static Hook);
fixed!(Clocks, CorruptMode, Distribution, Profile, Remote, SignalNumber, Syscall);

/// Implements [`Interpolate`] for structs of such values.
macro_rules! interpolate {
    ($($type:ty { $($field:tt),+ $(,)? })+) => {$(
        impl $crate::spec::interpolate::Interpolate for $type {
            fn between(&self, to: &Self, part: f64) -> Option<Self> {
                Some(Self { $($field: self.$field.between(&to.$field, part)?,)+ })
            }
        }
    )+};
}
pub(super) use interpolate;

interpolate! {
    Odds { probability, correlation }
    Every { 0 }
    BitRate { 0 }
    Size { 0 }
}

/// Interpolates two numbers. The result is rounded to a ten-thousandth of the order of magnitude of
/// their difference: one third of 100 is 33.33.
fn mix(from: f64, to: f64, part: f64) -> f64 {
    let difference = (to - from).abs();
    if difference == 0.0 {
        return from;
    }
    let digits = 4 - difference.log10().floor() as i32;
    let value = from + (to - from) * part;
    // Multiplying and dividing by whole powers of ten leaves no noise in the last digits.
    let scale = 10f64.powi(digits.abs().min(15));
    let rounded =
        if digits < 0 { (value / scale).round() * scale } else { (value * scale).round() / scale };
    if rounded.is_finite() { rounded } else { value }
}

impl Interpolate for f64 {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        Some(mix(*self, *to, part))
    }
}

/// Implements [`Interpolate`] for whole numbers.
macro_rules! integers {
    ($($type:ty),+ $(,)?) => {$(
        #[allow(clippy::cast_lossless, reason = "u64 has no other conversion")]
        impl Interpolate for $type {
            fn between(&self, to: &Self, part: f64) -> Option<Self> {
                Some(mix(*self as f64, *to as f64, part).round() as Self)
            }
        }
    )+};
}

integers!(i32, u16, u32, u64);

impl Interpolate for Percent {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        let percent = mix(self.fraction() * 100.0, to.fraction() * 100.0, part);
        Some(Self::from_fraction(percent / 100.0))
    }
}

impl Interpolate for HumanDuration {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        let ns = mix(self.0.as_nanos() as f64, to.0.as_nanos() as f64, part);
        Some(Self(Duration::from_nanos(ns.round() as u64)))
    }
}

impl Interpolate for jiff::SignedDuration {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        let ns = mix(self.as_nanos() as f64, to.as_nanos() as f64, part);
        Some(Self::from_nanos(ns.round() as i64))
    }
}

impl Interpolate for Offset {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (Self::By(from), Self::By(to)) => from.between(to, part).map(Self::By),
            _ => (self == to).then_some(*self),
        }
    }
}

impl<T: Interpolate> Interpolate for Option<T> {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (None, None) => Some(None),
            (Some(from), Some(to)) => from.between(to, part).map(Some),
            _ => None,
        }
    }
}

impl<A: Interpolate, B: Interpolate> Interpolate for (A, B) {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        Some((self.0.between(&to.0, part)?, self.1.between(&to.1, part)?))
    }
}

impl<T: Interpolate> Interpolate for Vec<T> {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        let is_same = self.len() == to.len();
        is_same.then(|| self.iter().zip(to).map(|(from, to)| from.between(to, part)).collect())?
    }
}

/// Why two faults cannot be interpolated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{key}` is {from} at one end and {to} at the other")]
pub struct Difference {
    /// The key whose values differ but are not amounts.
    pub key: String,
    /// Value at the start.
    pub from: String,
    /// Value at the end.
    pub to: String,
}

impl Difference {
    /// The difference in the values of a key.
    pub fn of<T: Serialize>(key: &str, from: &T, to: &T) -> Self {
        let text = |value| serde_json::to_string(value).unwrap_or_default();
        Self { key: key.into(), from: text(from), to: text(to) }
    }

    /// The difference in the first key that differs.
    pub fn first<T: Serialize>(from: &T, to: &T) -> Self {
        let object = |value| match serde_json::to_value(value) {
            Ok(Json::Object(object)) => object,
            _ => Map::new(),
        };
        let (from, to) = (object(from), object(to));
        let differs = |key: &&String| from.get(*key) != to.get(*key);
        let key = from.keys().chain(to.keys()).find(differs).cloned().unwrap_or_default();
        Self::of(&key, &from.get(&key), &to.get(&key))
    }
}
