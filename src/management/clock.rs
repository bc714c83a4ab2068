//! The clocks of devices: read, compared with the gateway's, shown, alarmed, and set where the profile says how.
//!
//! Promise:
//! - A device's clock is never set from a gateway clock that is not under discipline (NTP or PTP), and by policy at most once
//!   per reading interval, so that two masters do not fight.
//! - The offset is measured against the middle of the reading; `resolution` says how exact it can be.
//!
//! It must not touch devices: the caller reads and writes the points that [`ClockForm`] names.

mod desk;
mod form;
mod states;

pub use desk::{ClockRecord, Clocks, Reading};
pub use form::{ClockForm, FormError};
pub use states::{Action as ClockAction, Event as ClockEvent, Guard as ClockGuard, State as ClockState, TABLE};
