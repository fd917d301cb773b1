//! Path patterns, matched byte by byte without backtracking, which the eBPF verifier can follow.
//!
//! `*` matches any number of bytes and `?` matches one, both including `/`, as fnmatch(3) does
//! without flags. A pattern is compiled to the automaton of its prefixes: bit N of a state is set
//! if the input so far matches the first N tokens (bytes and `?`).

/// Maximum number of tokens in a pattern, not counting `*`.
pub const MAX_TOKENS: usize = 64 * WORDS - 1;

const WORDS: usize = 4;

/// The matching prefixes of a pattern.
pub type State = [u64; WORDS];

/// A compiled pattern.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glob {
    /// For each byte, the prefixes whose last token matches it.
    bytes: [State; 256],
    /// The prefixes followed by a `*`.
    loops: State,
    /// The whole pattern.
    accepted: State,
}

impl Glob {
    /// Matches no string, not even the empty one.
    pub const NOTHING: Self =
        Self { bytes: [[0; WORDS]; 256], loops: [0; WORDS], accepted: [0; WORDS] };

    /// Compiles a pattern; `None` if it has more than [`MAX_TOKENS`].
    #[must_use]
    pub fn new(pattern: &[u8]) -> Option<Self> {
        let mut glob = Self::NOTHING;
        let mut tokens = 0;
        for &byte in pattern {
            if byte == b'*' {
                set(&mut glob.loops, tokens);
                continue;
            }
            if tokens == MAX_TOKENS {
                return None;
            }
            tokens += 1;
            if byte == b'?' {
                glob.bytes.iter_mut().for_each(|state| set(state, tokens));
            } else {
                set(&mut glob.bytes[usize::from(byte)], tokens);
            }
        }
        set(&mut glob.accepted, tokens);
        Some(glob)
    }

    /// The state before any input.
    #[must_use]
    pub const fn start() -> State {
        [1, 0, 0, 0]
    }

    /// The state after another byte. A state of 0 is final.
    #[inline(always)]
    #[must_use]
    pub fn step(&self, state: State, byte: u8) -> State {
        let (bytes, loops) = (&self.bytes[byte as usize], &self.loops);
        // Unrolled: a loop over an array would access memory in eBPF.
        [
            (state[0] << 1) & bytes[0] | state[0] & loops[0],
            (state[1] << 1 | state[0] >> 63) & bytes[1] | state[1] & loops[1],
            (state[2] << 1 | state[1] >> 63) & bytes[2] | state[2] & loops[2],
            (state[3] << 1 | state[2] >> 63) & bytes[3] | state[3] & loops[3],
        ]
    }

    /// Whether the input so far matches the pattern.
    #[inline(always)]
    #[must_use]
    pub fn accepts(&self, state: State) -> bool {
        let accepted = &self.accepted;
        state[0] & accepted[0]
            | state[1] & accepted[1]
            | state[2] & accepted[2]
            | state[3] & accepted[3]
            != 0
    }
}

fn set(state: &mut State, bit: usize) {
    state[bit / 64] |= 1 << (bit % 64);
}
