//! Patterns of paths, matched byte by byte without going back: what the eBPF verifier can follow.
//!
//! `*` stands for any number of bytes and `?` for one, `/` included in both, as fnmatch(3) has it without flags. A pattern
//! becomes the automaton of its prefixes: bit N of a state says that what was read so far can be what the first N tokens
//! (bytes and `?`) match.

/// Most tokens of a pattern, `*` not counted.
pub const MAX_TOKENS: usize = 64 * WORDS - 1;

const WORDS: usize = 4;

/// Which prefixes of a pattern match.
pub type State = [u64; WORDS];

/// A pattern.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glob {
    /// The prefixes that end with a token which this byte matches.
    bytes: [State; 256],
    /// The prefixes that a `*` follows.
    loops: State,
    /// The whole pattern.
    accepted: State,
}

impl Glob {
    /// Matches nothing, not even the empty string.
    pub const NOTHING: Self =
        Self { bytes: [[0; WORDS]; 256], loops: [0; WORDS], accepted: [0; WORDS] };

    /// Reads a pattern; `None` if it has more than [`MAX_TOKENS`].
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

    /// Before anything is read.
    #[must_use]
    pub const fn start() -> State {
        [1, 0, 0, 0]
    }

    /// After another byte. Once it is 0, it stays so.
    #[inline(always)]
    #[must_use]
    pub fn step(&self, state: State, byte: u8) -> State {
        let (bytes, loops) = (&self.bytes[byte as usize], &self.loops);
        // Written out, as a loop over an array would go through memory in eBPF.
        [
            (state[0] << 1) & bytes[0] | state[0] & loops[0],
            (state[1] << 1 | state[0] >> 63) & bytes[1] | state[1] & loops[1],
            (state[2] << 1 | state[1] >> 63) & bytes[2] | state[2] & loops[2],
            (state[3] << 1 | state[2] >> 63) & bytes[3] | state[3] & loops[3],
        ]
    }

    /// Whether what was read is what the pattern matches.
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
