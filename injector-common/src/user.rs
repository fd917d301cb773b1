//! `aya::Pod` implementations, which aya's typed maps require.

use crate::{
    classify::{ShortKey, Slot, TupleKey},
    control::{Connection, Control, RuleSet},
    counter::{RuleCounters, SeenCounters},
    errno::{ErrnoCounters, Remote},
    glob::Glob,
    hold::{self, Hold, HoldState, Route},
    model::{
        clock::Skew,
        trace::{Player, Step},
    },
    probe::{DeadlineKey, ProbeControl, ProbeCounters, Replaced, TimerKey},
    process::{CallCounters, Wait},
    rule::Rule,
    unmatched,
};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), Copy, 'static, without padding (checked below), and any bit pattern is
        // valid.
        unsafe impl aya::Pod for $type {}
    )+};
}

pod!(
    ShortKey,
    Slot,
    TupleKey,
    Connection,
    Control,
    RuleSet,
    RuleCounters,
    SeenCounters,
    Rule,
    Hold,
    HoldState,
    Route,
    hold::Slot,
    hold::Table,
    Skew,
    Step,
    Player,
    DeadlineKey,
    ProbeControl,
    ProbeCounters,
    Replaced,
    TimerKey,
    CallCounters,
    Wait,
    ErrnoCounters,
    Glob,
    Remote,
    unmatched::Kind,
    unmatched::Count
);

const _: () = {
    assert!(size_of::<ShortKey>() == 12);
    assert!(size_of::<Slot>() == 16);
    assert!(size_of::<TupleKey>() == 28);
    assert!(size_of::<Connection>() == 36);
    assert!(size_of::<Control>() == 24);
    assert!(size_of::<RuleCounters>() == 192);
    assert!(size_of::<SeenCounters>() == 64);
    assert!(size_of::<Rule>() == 80);
    assert!(size_of::<unmatched::Kind>() == 24);
    assert!(size_of::<unmatched::Count>() == 16);
    assert!(size_of::<Step>() == 24);
    assert!(size_of::<Player>() == 80);
    assert!(size_of::<Hold>() == 96);
    assert!(size_of::<HoldState>() == 64);
    assert!(size_of::<Route>() == 32);
    assert!(size_of::<hold::Slot>() == 40);
    assert!(size_of::<Skew>() == 144);
    assert!(size_of::<DeadlineKey>() == 16);
    assert!(size_of::<ProbeControl>() == 16);
    assert!(size_of::<ProbeCounters>() == 56);
    assert!(size_of::<Replaced>() == 40);
    assert!(size_of::<TimerKey>() == 8);
    assert!(size_of::<CallCounters>() == 24);
    assert!(size_of::<Wait>() == 24);
    assert!(size_of::<ErrnoCounters>() == 24);
    assert!(size_of::<Glob>() == 258 * 32);
    assert!(size_of::<Remote>() == 32);
};
