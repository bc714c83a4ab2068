//! The configuration after every check: what a value of these types says is legal and complete. Where a module has a
//! `Config` of its own, the reader fills that one; types here are for what only becomes one with the data directory,
//! certificates or hashed passwords (the `into_*` files), and for what belongs to no module.

mod certificates;
mod device;
mod firmware;
mod gateway;

pub use certificates::{Certificates, Est, Pki, ServerTls};
pub use device::{Device, DeviceManagement, Group};
pub use firmware::Firmware;
pub use gateway::{
    Access, Acl, Broker, BrokerLimits, FullPolicy, Gateway, Identity, Limits, Listener, Management, Store, SyncMode,
    Uplink, User,
};
