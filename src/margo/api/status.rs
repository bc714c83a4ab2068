//! How a deployment stands, as the fleet manager is told.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::margo::words::{DeploymentId, DevicePath};

/// States of a deployment and of its components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum State {
    Pending,
    Installing,
    Installed,
    Failed,
    Removing,
    Removed,
}

impl State {
    /// As it stands in the message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Installing => "installing",
            Self::Installed => "installed",
            Self::Failed => "failed",
            Self::Removing => "removing",
            Self::Removed => "removed",
        }
    }

    /// failed > removing > installing > pending > removed > installed.
    const fn severity(self) -> u8 {
        match self {
            Self::Failed => 5,
            Self::Removing => 4,
            Self::Installing => 3,
            Self::Pending => 2,
            Self::Removed => 1,
            Self::Installed => 0,
        }
    }
}

/// The most severe of the states; `Pending` when there is none.
pub fn overall(states: impl IntoIterator<Item = State>) -> State {
    states.into_iter().max_by_key(|state| state.severity()).unwrap_or(State::Pending)
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusError {
    /// A code; the gateway's own are 101, 102 and 103.
    pub code: String,
    /// Id of the gateway, or of the device.
    pub source: String,
    /// For people.
    pub message: String,
}

impl StatusError {
    /// 101.
    pub fn unknown_child(gateway: &DevicePath) -> Self {
        Self::of(gateway, "101", "Unknown child device ID")
    }

    /// 102.
    pub fn unreachable(gateway: &DevicePath) -> Self {
        Self::of(gateway, "102", "Child device unreachable")
    }

    /// 103.
    pub fn no_placement(gateway: &DevicePath) -> Self {
        Self::of(gateway, "103", "Autonomous placement not supported")
    }

    /// An error with `source` as who found it.
    pub fn of(source: &DevicePath, code: &str, message: &str) -> Self {
        Self { code: code.to_owned(), source: source.to_string(), message: message.to_owned() }
    }

    fn to_json(&self) -> Value {
        json!({ "code": self.code, "source": self.source, "message": self.message })
    }
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its name in the deployment.
    pub name: String,
    /// State.
    pub state: State,
    /// Why, when it failed.
    pub error: Option<StatusError>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Which deployment.
    pub deployment_id: DeploymentId,
    /// Newest manifest whose revision of this deployment is held and begun.
    pub adopted_manifest_version: u64,
    /// The child it is about; `None` for the device that the client is.
    pub device: Option<DevicePath>,
    /// The most severe of the components' states.
    pub state: State,
    /// Why, when it failed.
    pub error: Option<StatusError>,
    /// One per component of the deployment.
    pub components: Vec<Component>,
}

impl DeploymentStatus {
    /// The message as rc.3 wants it.
    pub fn to_json(&self) -> Value {
        let with_error = |mut value: Value, error: &Option<StatusError>| {
            if let Some(error) = error {
                value["error"] = error.to_json();
            }
            value
        };
        let component = |c: &Component| with_error(json!({ "name": c.name, "state": c.state.as_str() }), &c.error);
        let mut message = json!({
            "deploymentId": self.deployment_id.as_str(),
            "adoptedManifestVersion": self.adopted_manifest_version,
            "status": with_error(json!({ "state": self.state.as_str() }), &self.error),
            "components": self.components.iter().map(component).collect::<Vec<_>>(),
        });
        if let Some(device) = &self.device {
            message["deviceId"] = device.as_str().into();
        }
        message
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> DeploymentStatus {
        let gateway = DevicePath::new("gw").unwrap();
        DeploymentStatus {
            deployment_id: DeploymentId::new("6ba7b810-9dad-41d1-80b4-00c04fd430c8").unwrap(),
            adopted_manifest_version: 3,
            device: Some(DevicePath::new("gw/pump-1").unwrap()),
            state: State::Failed,
            error: Some(StatusError::unreachable(&gateway)),
            components: vec![Component { name: "recipe".to_owned(), state: State::Failed, error: None }],
        }
    }

    #[test]
    fn the_overall_state_is_the_most_severe() {
        use State::*;
        let order = [Installed, Removed, Pending, Installing, Removing, Failed];
        for (i, worse) in order.iter().enumerate() {
            for milder in &order[..=i] {
                assert_eq!(overall([*milder, *worse]), *worse);
                assert_eq!(overall([*worse, *milder]), *worse);
            }
        }
    }

    #[test]
    fn a_gateway_error_carries_the_gateways_id_as_its_source() {
        let value = example().to_json();
        assert_eq!(value["status"]["error"]["source"], "gw");
        assert_eq!(value["status"]["error"]["code"], "102");
        assert_eq!(value["deviceId"], "gw/pump-1");
        assert!(value["components"][0].get("error").is_none());
        let own = DeploymentStatus { device: None, error: None, ..example() }.to_json();
        assert!(own.get("deviceId").is_none() && own["status"].get("error").is_none());
    }
}
