//! The configuration after every check: what a value of these types says is legal and complete. The modules' own
//! `Config` types are made from them in the `into_*` files.

mod device;
mod gateway;

pub use device::{
    Addressing, BitRange, Breaker, Deadband, Device, Group, Link, Modbus, ModbusPoint, Order, Parity, Protocol, Rule,
    Serial, Table, Transport,
};
pub use gateway::{
    Acl, Broker, BrokerLimits, ClientTls, Filter, FullPolicy, Gateway, Identity, Limits, Listener, Local, Log,
    LogFormat, MqttVersion, Otlp, OtlpProtocol, Qos, Replay, ReplayOrder, Server, ServerTls, Store, SyncMode, Uplink,
    User, Window,
};
