//! The configuration after every check: what a value of these types says is legal and complete. The modules' own
//! `Config` types are made from them in the `into_*` files.

mod certificates;
mod device;
mod gateway;

pub use certificates::{Certificates, Est, Pki, ServerTls};
pub use device::{
    Addressing, BitRange, Breaker, Deadband, Device, DeviceManagement, Group, Link, LinkOptions, Modbus, ModbusPoint,
    Order, Parity, Protocol, Rule, Serial, Table, Transport, Write, WriteFunction,
};
pub use gateway::{
    Access, Acl, Broker, BrokerLimits, ClientTls, Consumer, Filter, FullPolicy, Gateway, Identity, Limits, LinkPolicy,
    Listener, Log, LogFormat, Management, MqttVersion, Otlp, OtlpProtocol, Publish, Qos, QosSet, Replay, Server, Store,
    SyncMode, Uplink, User, Window,
};
