//! A probability for each packet, optionally correlated with the previous packet.

/// A probability in units of 2^-32; [`Probability::ALWAYS`] is exactly 1.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(pub u32);

impl Probability {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Always, exactly.
    pub const ALWAYS: Self = Self(u32::MAX);

    /// Converts a fraction, clamped to 0 to 1. Only 0 becomes [`Self::NEVER`], and only 1
    /// [`Self::ALWAYS`].
    #[must_use]
    pub fn from_fraction(fraction: f64) -> Self {
        if fraction >= 1.0 {
            return Self::ALWAYS;
        }
        // `as` saturates: NaN becomes 0.
        match (fraction * 4_294_967_296.0) as u32 {
            0 if fraction > 0.0 => Self(1),
            u32::MAX => Self(u32::MAX - 1),
            bits => Self(bits),
        }
    }

    /// The probability as a fraction from 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        if self == Self::ALWAYS { 1.0 } else { f64::from(self.0) / 4_294_967_296.0 }
    }

    /// Whether a uniformly distributed `random` hits.
    #[inline(always)]
    #[must_use]
    pub const fn hit(self, random: u32) -> bool {
        self.0 == u32::MAX || random < self.0
    }
}

/// A probability that depends on whether the previous packet was hit.
///
/// With probability P and correlation C: P + C·(1-P) after a hit and P·(1-C) after a miss. That keeps
/// the long-run rate at exactly P and makes the lag-1 autocorrelation exactly C. netem's
/// correlation (averaging with the last random number) has neither property, as its man page warns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chance {
    /// Probability after a packet that was not hit.
    pub after_miss: Probability,
    /// Probability after a packet that was hit.
    pub after_hit: Probability,
}

impl Chance {
    /// Hits nothing.
    pub const NEVER: Self = Self { after_miss: Probability::NEVER, after_hit: Probability::NEVER };

    /// A chance of `probability` and `correlation`, as fractions from 0 to 1.
    #[must_use]
    pub fn new(probability: f64, correlation: f64) -> Self {
        // Probability 1 must also hit the first packet, which counts as following a miss.
        let correlation = if probability >= 1.0 { 0.0 } else { correlation };
        Self {
            after_miss: Probability::from_fraction(probability * (1.0 - correlation)),
            after_hit: Probability::from_fraction(probability + correlation * (1.0 - probability)),
        }
    }

    /// Whether this packet is hit.
    #[inline(always)]
    #[must_use]
    pub const fn hit(&self, hit_before: bool, random: u32) -> bool {
        if hit_before { self.after_hit.hit(random) } else { self.after_miss.hit(random) }
    }

    /// Whether the outcome depends on the packet before.
    #[must_use]
    pub fn is_correlated(&self) -> bool {
        self.after_miss != self.after_hit
    }
}
