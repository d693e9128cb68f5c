//! Moments on the time line of a build.
//!
//! What happens is told by `kiln_session::progress`; the views count in nanoseconds, which is easier to reckon with than
//! calendar time.

use jiff::Timestamp;

/// Nanoseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

impl Stamp {
    /// Returns the present time of the system clock.
    pub fn now() -> Stamp {
        Timestamp::now().into()
    }

    /// Returns the seconds from `earlier` to `self`; negative when the order is the other way round.
    pub fn seconds_since(self, earlier: Stamp) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e9
    }

    /// Returns this moment moved by `nanos`.
    pub fn shifted(self, nanos: i64) -> Stamp {
        Stamp(self.0.saturating_add(nanos))
    }
}

impl From<Timestamp> for Stamp {
    fn from(time: Timestamp) -> Stamp {
        Stamp(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX))
    }
}
