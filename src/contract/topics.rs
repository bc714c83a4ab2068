//! Topic names of contract v1, relative to a root such as `fieldgate/v1/plant-7`.

use crate::model::{DeviceId, GatewayId, PointId};

/// Root of all topics of one gateway when the configuration does not say otherwise.
pub fn default_root(gateway: &GatewayId) -> String {
    format!("fieldgate/v1/{gateway}")
}

/// Retained, with a will: [`super::v1::Status`].
pub const STATUS: &str = "status";
/// Retained: [`super::v1::Health`].
pub const HEALTH: &str = "health";
/// Not retained: [`super::v1::Gap`].
pub const GAPS: &str = "gaps";
/// Not retained: [`super::v1::Event`]s of the gateway itself.
pub const EVENTS: &str = "events";

/// Retained: [`super::v1::Onboarding`].
pub fn onboarding(device: &DeviceId) -> String {
    format!("devices/{device}/onboarding")
}

/// Retained: [`super::v1::Capabilities`].
pub fn capabilities(device: &DeviceId) -> String {
    format!("devices/{device}/capabilities")
}

/// Not retained: [`super::v1::Telemetry`].
pub fn telemetry(device: &str) -> String {
    format!("devices/{device}/telemetry")
}

/// Retained: [`super::v1::Point`].
pub fn point(device: &str, point: &str) -> String {
    format!("devices/{device}/points/{point}")
}

/// Not retained: [`super::v1::Event`]; the gateway's own events have an empty device.
pub fn events(device: &str) -> String {
    if device.is_empty() { EVENTS.to_owned() } else { format!("devices/{device}/events") }
}

/// To the gateway: [`super::v1::Command`].
pub fn command(device: &DeviceId) -> String {
    format!("devices/{device}/command")
}

/// Not retained: [`super::v1::CommandResult`].
pub fn command_result(device: &str) -> String {
    format!("devices/{device}/command/result")
}

/// To the gateway, retained by whoever asks: [`super::v1::DesiredFirmware`].
pub fn firmware_desired(device: &str) -> String {
    format!("devices/{device}/firmware/desired")
}

/// To the gateway, retained by whoever asks: [`super::v1::DesiredConfig`].
pub fn config_desired(device: &DeviceId) -> String {
    format!("devices/{device}/config/desired")
}

/// Retained: [`super::v1::DeviceClock`].
pub fn device_time(device: &DeviceId) -> String {
    format!("devices/{device}/time")
}

/// Retained: [`super::v1::FirmwareStatus`] of a device, or of the gateway itself when there is none.
pub fn firmware_status(device: &str) -> String {
    if device.is_empty() { "firmware/status".to_owned() } else { format!("devices/{device}/firmware/status") }
}

/// Not retained: where the [`super::v1::ManagementResult`] of an action goes. `device` is empty for the gateway and for
/// requests on several devices.
pub fn management_result(action: &str, device: &str) -> String {
    match (action, device) {
        ("configure", "") => "config/result".to_owned(),
        ("configure", device) => format!("devices/{device}/config/result"),
        (action, "") if action.starts_with(FIRMWARE) => "firmware/result".to_owned(),
        (action, device) if action.starts_with(FIRMWARE) => format!("devices/{device}/firmware/result"),
        (_, "") => "management/result".to_owned(),
        (_, device) => format!("devices/{device}/onboarding/result"),
    }
}

/// Begins the action of every request about firmware.
const FIRMWARE: &str = "firmware-";

/// Something a client asks of the gateway by publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestTopic {
    /// `devices/{d}/command`
    Command(DeviceId),
    /// `management/request`, `config/desired`, `firmware/desired`, `firmware/request`, or one of
    /// `onboarding/request`, `onboarding/announce`, `config/desired`, `firmware/desired` and `firmware/request` below
    /// `devices/{d}`.
    Management(ManagementTopic),
}

/// A topic that brings requests of device management.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagementTopic {
    /// The topic, relative to the root.
    pub topic: String,
    /// The device that it names.
    pub device: Option<DeviceId>,
    /// Whether it brings something desired, which may be retained; other requests may not.
    pub is_desired: bool,
    /// What it is about.
    pub subject: Subject,
}

/// What a request of device management is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The life of devices.
    Life,
    /// Their configuration.
    Configuration,
    /// Their firmware.
    Firmware,
}

impl ManagementTopic {
    /// Where the answer goes when the request cannot even be read.
    pub fn result(&self) -> String {
        let action = match self.subject {
            Subject::Life => "",
            Subject::Configuration => "configure",
            Subject::Firmware => FIRMWARE,
        };
        management_result(action, self.device.as_ref().map_or("", |device| device.as_str()))
    }
}

impl RequestTopic {
    /// Subscriptions, relative to the root, that bring every request.
    pub const FILTERS: [&str; 10] = [
        "devices/+/command",
        "management/request",
        "config/desired",
        "devices/+/onboarding/request",
        "devices/+/onboarding/announce",
        "devices/+/config/desired",
        "firmware/desired",
        "firmware/request",
        "devices/+/firmware/desired",
        "devices/+/firmware/request",
    ];

    /// Reads a topic relative to the root; `None` when it is no request topic.
    pub fn parse(topic: &str) -> Option<Self> {
        let levels: Vec<&str> = topic.splitn(5, '/').collect();
        let management = |device: Option<&str>, is_desired, subject| {
            let device = device.map(DeviceId::new).transpose().ok()?;
            Some(RequestTopic::Management(ManagementTopic { topic: topic.to_owned(), device, is_desired, subject }))
        };
        let firmware = |device, last: &str| management(device, last == "desired", Subject::Firmware);
        match levels.as_slice() {
            ["devices", device, "command"] => Some(RequestTopic::Command(DeviceId::new(device).ok()?)),
            ["management", "request"] => management(None, false, Subject::Life),
            ["config", "desired"] => management(None, true, Subject::Configuration),
            ["firmware", last @ ("desired" | "request")] => firmware(None, last),
            ["devices", device, "onboarding", "request" | "announce"] => management(Some(device), false, Subject::Life),
            ["devices", device, "config", "desired"] => management(Some(device), true, Subject::Configuration),
            ["devices", device, "firmware", last @ ("desired" | "request")] => firmware(Some(device), last),
            _ => None,
        }
    }
}

/// Reads `devices/{d}/points/{p}`; `None` when the topic is another one.
pub fn parse_point(topic: &str) -> Option<(DeviceId, PointId)> {
    let rest = topic.strip_prefix("devices/")?;
    let (device, point) = rest.split_once("/points/")?;
    Some((DeviceId::new(device).ok()?, PointId::new(point).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_topics_are_recognised_and_nothing_else_is() {
        let pump = DeviceId::new("pump").unwrap();
        assert_eq!(RequestTopic::parse(&command(&pump)), Some(RequestTopic::Command(pump)));
        for other in [
            "devices/pump/command/result",
            "devices//command",
            "devices/a b/command",
            "devices/a b/config/desired",
            "devices/pump/config/desired/x",
            "devices/pump/config/reported",
            "management/result",
            "status",
            "",
        ] {
            assert_eq!(RequestTopic::parse(other), None, "{other}");
        }
        let Some(RequestTopic::Management(gateway)) = RequestTopic::parse("config/desired") else { panic!() };
        assert!(gateway.is_desired && gateway.device.is_none());
        for topic in
            ["devices/pump/onboarding/request", "devices/pump/onboarding/announce", "devices/pump/config/desired"]
        {
            let Some(RequestTopic::Management(found)) = RequestTopic::parse(topic) else { panic!("{topic}") };
            assert_eq!((found.topic.as_str(), found.device.unwrap().as_str()), (topic, "pump"));
        }
    }

    #[test]
    fn requests_about_firmware_are_told_apart_and_answered_beside_their_topic() {
        for (topic, is_desired, result) in [
            ("firmware/desired", true, "firmware/result"),
            ("firmware/request", false, "firmware/result"),
            ("devices/pump/firmware/desired", true, "devices/pump/firmware/result"),
            ("devices/pump/firmware/request", false, "devices/pump/firmware/result"),
        ] {
            let Some(RequestTopic::Management(found)) = RequestTopic::parse(topic) else { panic!("{topic}") };
            assert_eq!((found.subject, found.is_desired), (Subject::Firmware, is_desired));
            assert_eq!(found.result(), result);
        }
        for other in ["firmware/status", "devices/pump/firmware", "devices/pump/firmware/chunk/0", "firmware"] {
            assert_eq!(RequestTopic::parse(other), None, "{other}");
        }
    }

    #[test]
    fn point_topics_round_trip() {
        let (device, id) = parse_point(&point("pump", "level")).unwrap();
        assert_eq!((device.as_str(), id.as_str()), ("pump", "level"));
        assert_eq!(parse_point("devices/pump/telemetry"), None);
    }
}
