//! Requests of `onboarding/request` and `management/request`, action by action.

use super::{Core, Done};
use crate::contract::v1;
use crate::management::desired::{Target, parse_duration};
use crate::management::lifecycle::{Announced, Claim, Details, Event, ScanRequest, Token};
use crate::management::request::{Actor, Refusal, fits};
use crate::management::roles::Role;
use crate::management::step::{Cause, Effect, Step};
use crate::management::table::Word;
use crate::model::{DeviceId, Stamp};

const DAY_MS: i64 = 86_400_000;

pub(super) fn announced(message: &v1::Announcement) -> Announced {
    Announced {
        claim: Claim {
            certificate: None,
            vendor: message.vendor.clone(),
            model: message.model.clone(),
            serial: message.serial.clone(),
            firmware: message.firmware.clone(),
            other: message.identification.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        },
        token: message.token.clone(),
        signing_request: message.signing_request.clone(),
    }
}

impl Core {
    pub(super) fn manage(
        &mut self,
        now: Stamp,
        actor: &Actor,
        device: Option<&DeviceId>,
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        if device.is_some() && !matches!(request.device.as_str(), "" | "*") {
            return Err(Refusal::new("invalid", "the topic names the device; leave `device` out"));
        }
        match request.action.as_str() {
            "create-token" => self.create_token(now, actor, request, cause, step),
            "revoke-token" => {
                self.lifecycle.revoke_token(now, &request.token, cause, step)?;
                Ok(Done { message: "the token is useless now".to_owned(), ..Done::default() })
            }
            "scan" => {
                let scan = ScanRequest::parse(&request.protocol, &request.range, &cause.actor)
                    .map_err(|e| Refusal::new("invalid", e.to_string()))?;
                step.audit(now, cause, "scan", request.range.clone(), request.protocol.clone(), "started");
                step.act(Effect::Scan(scan));
                Ok(Done { message: "the scan runs; what it finds is discovered".to_owned(), ..Done::default() })
            }
            "claim" => {
                self.roles.claim(now, actor, &request.token, cause, step)?;
                Ok(Done { message: format!("{} is an administrator now", actor.name), ..Done::default() })
            }
            "grant" => self.grant(now, request, cause, step),
            "export" => self.export(now, request, cause, step),
            "import" => {
                let message = self.import(now, &request.document, cause, step)?;
                Ok(message)
            }
            "cancel-transfer" => {
                self.transfers.cancel(now, &request.document, &mut self.lifecycle, cause, step)?;
                Ok(Done { message: "the transfer is cancelled; the devices stay here".to_owned(), ..Done::default() })
            }
            action => {
                let chosen = self.chosen(device, &request.device)?;
                self.on_devices(now, action, &chosen, request, cause, step)
            }
        }
    }

    /// Devices that the topic or the pattern names.
    pub(super) fn chosen(&self, device: Option<&DeviceId>, pattern: &str) -> Result<Vec<DeviceId>, Refusal> {
        if let Some(device) = device {
            return match self.lifecycle.device(device) {
                Some(_) => Ok(vec![device.clone()]),
                None => Err(Refusal::unknown_device(device)),
            };
        }
        if pattern.is_empty() {
            return Err(Refusal::new("invalid", "name the devices in `device`, as an id or a pattern such as pump-*"));
        }
        let all = self.lifecycle.devices().keys();
        let chosen: Vec<DeviceId> = all.filter(|id| fits(pattern, id.as_str())).cloned().collect();
        match chosen.is_empty() {
            true => Err(Refusal::new("unknown-device", format!("no device fits {pattern:?}"))),
            false => Ok(chosen),
        }
    }

    /// One device must be able to; of several, those that can are changed and the others are left alone.
    fn on_devices(
        &mut self,
        now: Stamp,
        action: &str,
        chosen: &[DeviceId],
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        let mut done = Vec::new();
        let mut first_refusal = None;
        for id in chosen {
            match self.on_device(now, action, id, request, cause, step) {
                Ok(()) => done.push(id.as_str().to_owned()),
                Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
            }
        }
        match (first_refusal, done.len(), chosen.len()) {
            (Some(refusal), 0, _) => Err(refusal),
            (_, n, all) => {
                Ok(Done { message: format!("{action}: {n} of {all} devices"), devices: done, ..Done::default() })
            }
        }
    }

    fn on_device(
        &mut self,
        now: Stamp,
        action: &str,
        id: &DeviceId,
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        match action {
            "identify" => {
                step.audit(now, cause, "identify", format!("devices/{id}"), String::new(), "started");
                step.act(Effect::Identify(id.clone()));
                return Ok(());
            }
            "set-clock" => return self.set_clock(now, id, cause, step),
            "restore" => {
                let target = Target::Device(id.clone());
                let highest = self.desired.job(&target).map_or(0, |job| job.highest);
                let document = v1::DesiredConfig {
                    version: highest + 1,
                    restore: request.version,
                    ..v1::DesiredConfig::default()
                };
                return self.desire(now, &target, &document, cause, step).map(|_| ());
            }
            _ => {}
        }
        let event = Event::parse(action)
            .ok_or_else(|| Refusal::new("unknown-action", format!("`action` {action:?} is not for devices")))?;
        if event == Event::Cancel {
            self.transfers.check_cancel(id, &self.lifecycle)?;
        }
        let details = Details {
            reason: request.reason.chars().filter(|c| !c.is_control()).take(200).collect(),
            fingerprint: (!request.fingerprint.is_empty()).then(|| request.fingerprint.clone()),
            profile: request.profile.clone(),
            erase_data: request.erase_data,
        };
        if !details.profile.is_empty() && !self.profiles.contains_key(&details.profile) {
            return Err(Refusal::new("invalid", format!("no profile {:?} in the files", details.profile)));
        }
        self.lifecycle.request(now, id, event, &details, cause, step)
    }

    /// At the gateway's own socket a token is made and shown once. Over MQTT, where answers have readers, the requester
    /// makes the secret and sends its SHA-256.
    fn create_token(
        &mut self,
        now: Stamp,
        actor: &Actor,
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        let life = match request.expires.as_str() {
            "" => DAY_MS,
            text => parse_duration(text)
                .map(|d| d.as_millis() as i64)
                .ok_or_else(|| Refusal::new("invalid", "`expires` must be a duration such as \"1 h\""))?,
        };
        if !request.profile.is_empty() && !self.profiles.contains_key(&request.profile) {
            return Err(Refusal::new("invalid", format!("no profile {:?} in the files", request.profile)));
        }
        let is_hash =
            request.token.len() == 64 && request.token.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !actor.name.starts_with("cli:") && !is_hash {
            let text =
                "send the SHA-256 of a secret of your own in `token` (hexadecimal); or use the CLI on the gateway";
            return Err(Refusal::new("invalid", text));
        }
        let token = Token {
            hash: if is_hash { request.token.clone() } else { String::new() },
            uses_left: request.uses.max(1),
            expires_ms: now.wall_ms.saturating_add(life),
            device: if request.device.is_empty() { "*".to_owned() } else { request.device.clone() },
            profile: request.profile.clone(),
            made_by: String::new(),
        };
        let issued = self.lifecycle.create_token(now, token, cause, step)?;
        let message = match is_hash {
            true => format!("devices present fgt.{}. followed by your secret", issued.id),
            false => format!("token {}", issued.id),
        };
        Ok(Done { message, token: issued.text, ..Done::default() })
    }

    fn grant(
        &mut self,
        now: Stamp,
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        let role = match request.role.as_str() {
            "none" => None,
            text => Some(Role::parse(text).ok_or_else(|| {
                Refusal::new("invalid", "`role` must be viewer, operator, engineer, administrator or none")
            })?),
        };
        self.roles.grant(now, &request.identity, role, cause, step)?;
        Ok(Done { message: format!("{} is {} now", request.identity, request.role), ..Done::default() })
    }
}
