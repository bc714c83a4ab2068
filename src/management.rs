//! Management of devices and of the gateway itself: state tables, each with a reconciler.

pub mod firmware;
