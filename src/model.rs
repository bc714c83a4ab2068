//! The words of the domain: what a device, a point, a sample, its quality and its time are.
//!
//! Promise: plain data and pure functions. No async, no I/O, no clock is read here, and nothing of ours is imported, so
//! every other module may use this one.

mod delivery;
mod device;
mod id;
mod record;
mod sample;
mod stamp;

pub use delivery::{Delivery, Depth, Order};
pub use device::{Access, DataType, Device, Limits, Point, Tier};
pub use id::{DeviceId, GatewayId, IdError, PointId, is_unreserved};
pub use record::{Gap, GapReason, Lane, Record, RecordKind, Seq};
pub use sample::{Batch, Quality, Reason, Sample, Value};
pub use stamp::{ClockTrust, Correction, Stamp, Uptime};
