//! Requests `export` and `import`, and setting clocks.

use super::{Core, Done, may_manage};
use crate::contract::v1;
use crate::management::desired::{Target, Version};
use crate::management::lifecycle::{hex, random};
use crate::management::request::Refusal;
use crate::management::step::{Cause, Step};
use crate::management::transfer::{Document, Kind, MAX_DEVICES, Sign, SigningKey, Transfer, TransferState};
use crate::model::{DeviceId, Stamp};

impl Core {
    fn signing_key(&self) -> Result<SigningKey, Refusal> {
        let none = || Refusal::new("not-possible", "this gateway has no key for signing; set [management] signing_key");
        self.settings.signing_key.clone().ok_or_else(none)
    }

    pub(super) fn export(
        &mut self,
        now: Stamp,
        request: &v1::ManagementRequest,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        let key = self.signing_key()?;
        if !self.settings.partners.contains_key(&request.gateway) {
            let text = format!("{:?} is no partner; add its public key to [management.partners]", request.gateway);
            return Err(Refusal::new("invalid", text));
        }
        let chosen = self.chosen(None, &request.device)?;
        if chosen.len() > MAX_DEVICES {
            return Err(Refusal::new("too-many", format!("{} devices; at most {MAX_DEVICES}", chosen.len())));
        }
        self.lifecycle.can_export(&chosen)?;
        let id = hex(&random::<8>()?);
        let devices = chosen.iter().filter_map(|device| {
            let target = Target::Device(device.clone());
            let mut exported = self.lifecycle.exported(device)?;
            exported.in_force = self.desired.job(&target).map(|job| job.in_force.clone());
            exported.history = self.desired.history(&target).into_iter().cloned().collect();
            Some(exported)
        });
        let document = Document {
            kind: Kind::Export,
            id: id.clone(),
            from: self.settings.gateway.as_str().to_owned(),
            to: request.gateway.clone(),
            made_ms: now.wall_ms,
            export: String::new(),
            devices: devices.collect(),
        };
        let (text, digest) = document.sign(&key)?;
        let transfer = Transfer {
            state: TransferState::Offered,
            since_ms: now.wall_ms,
            began_ms: now.wall_ms,
            partner: request.gateway.clone(),
            export: digest,
            devices: chosen.clone(),
        };
        self.transfers.begin(now, &id, transfer, cause, step)?;
        for device in &chosen {
            self.lifecycle.export(now, device, &id, cause, step);
        }
        Ok(Done {
            message: format!("transfer {id}: import this document at {}, then its receipt here", request.gateway),
            devices: chosen.iter().map(|d| d.as_str().to_owned()).collect(),
            document: text,
            ..Done::default()
        })
    }

    pub(super) fn import(&mut self, now: Stamp, text: &str, cause: &Cause, step: &mut Step) -> Result<Done, Refusal> {
        let key = self.signing_key()?;
        let (document, digest) = Document::open(text, |from| self.settings.partners.get(from).cloned())?;
        if document.to != self.settings.gateway.as_str() {
            return Err(Refusal::new("not-allowed", format!("this document is for {}", document.to)));
        }
        if document.kind == Kind::Export && self.transfers.transfer(&document.id).is_none() {
            self.receive(now, &document, &digest, cause, step)?;
        }
        let sign = self.transfers.document(now, &document, &digest, &mut self.lifecycle, cause, step)?;
        let export = match document.kind {
            Kind::Export => digest,
            Kind::Receipt | Kind::Release => document.export,
        };
        let reply = Document {
            kind: if sign == Sign::Receipt { Kind::Receipt } else { Kind::Release },
            id: document.id.clone(),
            from: document.to,
            to: document.from,
            made_ms: now.wall_ms,
            export,
            devices: Vec::new(),
        };
        let (message, document) = match sign {
            Sign::Receipt => (format!("received; import this receipt at {}", reply.to), reply.sign(&key)?.0),
            Sign::Release => (format!("handed over; import this release at {}", reply.to), reply.sign(&key)?.0),
            Sign::Nothing => {
                (format!("transfer {} is done; the devices are in service here", document.id), String::new())
            }
        };
        Ok(Done { message, document, ..Done::default() })
    }

    /// All devices of an export, or none.
    fn receive(
        &mut self,
        now: Stamp,
        document: &Document,
        digest: &str,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let bad = |what: String| Refusal::new("invalid", what);
        if document.devices.is_empty() || document.devices.len() > MAX_DEVICES || document.id.len() > 64 {
            return Err(bad("the document names no devices, or too many".to_owned()));
        }
        let mut devices = Vec::new();
        for exported in &document.devices {
            let id = DeviceId::new(&exported.device).map_err(|e| bad(e.to_string()))?;
            self.lifecycle.can_import(&id)?;
            if !(1..=2).contains(&exported.tier) || devices.contains(&id) {
                return Err(bad(format!("{id} is there twice, or its tier is {}", exported.tier)));
            }
            devices.push(id);
        }
        let transfer = Transfer {
            state: TransferState::Received,
            since_ms: now.wall_ms,
            began_ms: now.wall_ms,
            partner: document.from.clone(),
            export: digest.to_owned(),
            devices: devices.clone(),
        };
        self.transfers.begin(now, &document.id, transfer, cause, step)?;
        for (id, exported) in devices.iter().zip(&document.devices) {
            self.lifecycle.receive(now, id, exported, &document.id, cause, step);
            let target = Target::Device(id.clone());
            self.desired.forget(&target, step);
            if let Some(in_force) = exported.in_force.clone().or_else(|| Some(Version::files())) {
                self.desired.import(now, &target, in_force, exported.history.clone(), step);
            }
        }
        Ok(())
    }

    pub(super) fn set_clock(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        if let Some(declaration) = self.lifecycle.declaration(id) {
            may_manage(declaration, "time")?;
        }
        if !self.lifecycle.is_running(id) {
            return Err(Refusal::new("not-possible", format!("{id} is not in service")));
        }
        self.clocks.set(now, id, cause, step)
    }
}
