//! Why there should be so many slots, as numbers: it is put into words only when somebody asks.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use sluice_core::print::count;

/// Why there should be so many slots.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// The model is stopped.
    Stopped,
    /// One host tries to load it, though nobody asks for it.
    Trial,
    /// So many stay, since its scaling is paused.
    Paused(usize),
    /// So many stay, since how much waits is unknown, and why it is.
    Unknown(usize, String),
    /// What the work needs, what the bounds make of that, and what follows.
    Work(Need, Bound, Step),
}

/// What the work needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Need {
    /// There is none.
    None,
    /// One slot is to find out how long one of these rows takes.
    Unmeasured {
        /// Rows that wait or run.
        rows: u64,
    },
    /// So many slots.
    Slots {
        /// Rows that no slot runs yet.
        waiting: u64,
        /// Rows that slots run.
        running: u64,
        /// How long one takes.
        row_time: Duration,
        /// Rows that arrive per second.
        arrivals: f64,
        /// Seconds within which what waits is to be done.
        within: f64,
        /// The slots that this takes.
        slots: usize,
    },
}

impl Reason {
    /// The slots that the work needs now, whatever delays keep; `None` if that is not known, or not what decides.
    pub fn needed(&self) -> Option<usize> {
        match self {
            Self::Stopped | Self::Work(Need::None, ..) => Some(0),
            Self::Trial | Self::Work(Need::Unmeasured { .. }, ..) => Some(1),
            Self::Work(Need::Slots { slots, .. }, ..) => Some(*slots),
            Self::Paused(_) | Self::Unknown(..) => None,
        }
    }
}

/// What the bounds make of a need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// It lies between them.
    Neither,
    /// No more than these.
    Max(usize),
    /// No fewer than these.
    Min(usize),
}

impl Bound {
    pub(super) fn of(need: usize, bounded: usize) -> Self {
        match bounded.cmp(&need) {
            Ordering::Less => Self::Max(bounded),
            Ordering::Greater => Self::Min(bounded),
            Ordering::Equal => Self::Neither,
        }
    }
}

/// What follows for the slots that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// They are as many.
    Stay,
    /// There are more from now on than these.
    Up(usize),
    /// There are fewer at once than these.
    Capped(usize),
    /// There is one less than these, since no more than so many were needed for so long.
    Down(usize, usize, Duration),
    /// These stay until fewer were enough for so long.
    NotYet(usize, Duration),
    /// The last one stays until nothing was asked for so long.
    LastStays(Duration),
    /// One less only after a pause.
    Paced,
}

impl fmt::Display for Reason {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => text.write_str("it is stopped"),
            Self::Trial => text.write_str("nobody asks for it yet: one host loads it to find out whether it can be"),
            Self::Paused(slots) => write!(text, "{}: its scaling is paused", stay(*slots)),
            Self::Unknown(slots, why) => write!(text, "{}: how much waits is unknown ({why})", stay(*slots)),
            Self::Work(need, bound, step) => write!(text, "{need}{bound}{step}"),
        }
    }
}

fn stay(slots: usize) -> String {
    count(slots, "slot stays", "slots stay")
}

impl fmt::Display for Need {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => text.write_str("nothing waits and nothing arrives"),
            Self::Unmeasured { rows } => {
                write!(
                    text,
                    "{}, and how long one takes is not known yet: one slot finds out",
                    count(rows, "row", "rows")
                )
            }
            Self::Slots { waiting, running, row_time, arrivals, within, slots } => {
                let row_time = humantime::format_duration(Duration::from_micros(row_time.as_micros() as u64));
                write!(
                    text,
                    "{} of {row_time} wait and {running} run; what waits to be done within {within:.1} s, and {arrivals:.1} more each second, need {}",
                    count(waiting, "row", "rows"),
                    count(slots, "slot", "slots")
                )
            }
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neither => Ok(()),
            Self::Max(slots) => write!(text, "; `max_slots` allows {slots}"),
            Self::Min(slots) => write!(text, "; `min_slots` keeps {slots}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stay => Ok(()),
            Self::Up(slots) => write!(text, ": up from {slots}"),
            Self::Capped(slots) => write!(text, ": down from {slots}"),
            Self::Down(slots, most, delay) => {
                write!(text, ", and no more than {most} for {delay:?}: down from {slots}")
            }
            Self::NotYet(slots, delay) => write!(text, "; {slots} stay until fewer were enough for {delay:?}"),
            Self::LastStays(idle) => write!(text, "; the last slot stays until nothing was asked for {idle:?}"),
            Self::Paced => text.write_str("; one less after a pause"),
        }
    }
}
