//! What the command line asks through the admin socket, and how it is answered: plain data on both sides, so that
//! `fieldgate onboard|approve|reject|config|export|import` need nothing but this and the socket.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::core::Request;
use super::desired::Target;
use super::lifecycle::{hex, random};
use super::request::{Actor, Ask};
use super::service::{Management, Stopped};
use crate::contract::v1;
use crate::model::DeviceId;

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketAsk {
    /// Every device as its topic shows it.
    List,
    /// The configuration of a device (or of the gateway) with its history.
    Config {
        /// The device; the gateway when there is none.
        device: Option<String>,
    },
    /// Anything of `management/request`: approve, reject, scan, create-token, export, import, restore, grant…
    Manage(Box<v1::ManagementRequest>),
    /// A command to a device; the one who holds the socket has the command desk.
    Command {
        /// The device.
        device: String,
        /// The command; without a correlation id it gets one.
        command: Box<v1::Command>,
    },
    /// A desired configuration.
    Configure {
        /// The device; the gateway when there is none.
        device: Option<String>,
        /// The document. With version 0 it gets the next number.
        document: Box<v1::DesiredConfig>,
    },
}

impl SocketAsk {
    /// An action on devices by id or pattern, such as `approve` or `reject`.
    pub fn action(action: &str, devices: &str) -> Self {
        let request = v1::ManagementRequest {
            action: action.to_owned(),
            device: devices.to_owned(),
            ..v1::ManagementRequest::default()
        };
        SocketAsk::Manage(Box::new(request))
    }

    /// Hands devices to a partner; the answer's `document` is for him.
    pub fn export(devices: &str, gateway: &str) -> Self {
        let request = v1::ManagementRequest {
            action: "export".to_owned(),
            device: devices.to_owned(),
            gateway: gateway.to_owned(),
            ..v1::ManagementRequest::default()
        };
        SocketAsk::Manage(Box::new(request))
    }

    /// Takes a document of a partner: an export, a receipt or a release.
    pub fn import(document: &str) -> Self {
        let request = v1::ManagementRequest {
            action: "import".to_owned(),
            document: document.to_owned(),
            ..v1::ManagementRequest::default()
        };
        SocketAsk::Manage(Box::new(request))
    }
}

/// An answer to [`SocketAsk`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketAnswer {
    /// All devices.
    Devices(v1::DeviceList),
    /// A configuration; `None` when nobody ever asked for one.
    Config(Option<Box<v1::ReportedConfig>>),
    /// The final answer to a request.
    Result(Box<v1::ManagementResult>),
    /// The final answer to a command.
    Command(Box<v1::CommandResult>),
    /// Not a question.
    Error(String),
}

static ASKED: AtomicU64 = AtomicU64::new(0);

/// A correlation id of our own: whoever sits at the socket waits for the answer.
pub fn correlation_id() -> String {
    let n = ASKED.fetch_add(1, Ordering::Relaxed);
    let random = random::<8>().map_or_else(|_| String::new(), |octets| hex(&octets));
    format!("cli-{random}-{n}")
}

impl Management {
    /// Answers a question of the socket. `uid` is the user at the other end.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn socket(&self, uid: u32, ask: SocketAsk) -> Result<SocketAnswer, Stopped> {
        let actor = Actor::named(&format!("cli:uid={uid}"));
        let target = |device: Option<String>| match device {
            None => Ok(Target::Gateway),
            Some(text) => DeviceId::new(&text).map(Target::Device).map_err(|e| SocketAnswer::Error(e.to_string())),
        };
        let ask = match ask {
            SocketAsk::List => return self.look(|core| SocketAnswer::Devices(core.list())).await,
            SocketAsk::Config { device } => {
                return match target(device) {
                    Ok(target) => {
                        self.look(move |core| SocketAnswer::Config(core.reported(&target).map(Box::new))).await
                    }
                    Err(answer) => Ok(answer),
                };
            }
            SocketAsk::Command { .. } => {
                return Ok(SocketAnswer::Error("commands go to the command desk".to_owned()));
            }
            SocketAsk::Manage(mut request) => {
                if request.correlation_id.is_empty() {
                    request.correlation_id = correlation_id();
                }
                Ask::Manage { device: None, request: *request }
            }
            SocketAsk::Configure { device, mut document } => {
                let target = match target(device) {
                    Ok(target) => target,
                    Err(answer) => return Ok(answer),
                };
                if document.version == 0 {
                    let known = target.clone();
                    document.version =
                        self.look(move |core| core.desired().job(&known).map_or(0, |j| j.highest)).await? + 1;
                }
                if document.correlation_id.is_empty() {
                    document.correlation_id = correlation_id();
                }
                Ask::Desire { target, document: *document }
            }
        };
        Ok(SocketAnswer::Result(Box::new(self.ask(Request { actor, ask }).await?)))
    }

    /// [`Self::socket`] for a JSON line.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn socket_json(&self, uid: u32, ask: Json) -> Result<Json, Stopped> {
        let answer = match serde_json::from_value(ask) {
            Ok(ask) => self.socket(uid, ask).await?,
            Err(error) => SocketAnswer::Error(format!("not a question of device management: {error}")),
        };
        Ok(serde_json::to_value(answer).unwrap_or(Json::Null))
    }
}
