//! Who may ask what: four roles, one table of rights, and how identities get roles.
//!
//! There is no default password. The local administrator's socket is protected by the file system: whoever may open it is an
//! administrator. The first administrator over MQTT makes himself one with the claim code that `fieldgate init` prints;
//! only its hash is kept, it works once, and five wrong codes close it for a minute. Further roles are granted by
//! administrators, or in the files.
//!
//! An identity without a grant has no role at all: it is refused everything but its own announcement and claim.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::journal::{JournalError, Records, Shelf};
use super::lifecycle::{hex, random, same_secret, sha256_hex};
use super::request::{Actor, Refusal, fits};
use super::step::{Cause, Step};
use super::table::{Word, words};
use crate::model::Stamp;

words!(
    /// A set of rights; each contains those before it.
    Role {
        /// Looks.
        Viewer = "viewer",
        /// Runs the plant.
        Operator = "operator",
        /// Changes how devices are set up.
        Engineer = "engineer",
        /// Decides who may do what, and what cannot be undone.
        Administrator = "administrator",
    }
);

words!(
    /// Something that can be asked.
    Right {
        /// Lists, states, configuration, history.
        See = "see",
        /// Writes and methods.
        Command = "command",
        /// Take devices out of service and put them back, ask who they are, set their clocks.
        Operate = "operate",
        /// Read the audit log.
        Audit = "audit",
        /// Approve, reject, replace, tokens, scans.
        Onboard = "onboard",
        /// Configuration of devices.
        Configure = "configure",
        /// Firmware of devices.
        Firmware = "firmware",
        /// Configuration and firmware of the gateway itself.
        Gateway = "gateway",
        /// Hand devices over to another gateway, or take them.
        Transfer = "transfer",
        /// End the life of a device.
        Decommission = "decommission",
        /// Roles of others.
        Grant = "grant",
    }
);

/// The least role for each right.
pub static RIGHTS: [(Right, Role); 11] = [
    (Right::See, Role::Viewer),
    (Right::Command, Role::Operator),
    (Right::Operate, Role::Operator),
    (Right::Audit, Role::Engineer),
    (Right::Onboard, Role::Engineer),
    (Right::Configure, Role::Engineer),
    (Right::Firmware, Role::Engineer),
    (Right::Gateway, Role::Administrator),
    (Right::Transfer, Role::Administrator),
    (Right::Decommission, Role::Administrator),
    (Right::Grant, Role::Administrator),
];

/// The right that an action of a [`crate::contract::v1::ManagementRequest`] needs; `None` for an unknown action. A claim
/// needs none: its code is the right.
pub fn right_of(action: &str) -> Option<Right> {
    Some(match action {
        "list" | "history" => Right::See,
        "suspend" | "resume" | "identify" | "set-clock" => Right::Operate,
        "offer" | "approve" | "reject" | "accept-identity" | "replace" | "cancel" | "readmit" | "create-token"
        | "revoke-token" | "scan" => Right::Onboard,
        "restore" => Right::Configure,
        "decommission" => Right::Decommission,
        "export" | "import" | "cancel-transfer" => Right::Transfer,
        "grant" => Right::Grant,
        "audit" => Right::Audit,
        _ => return None,
    })
}

/// A role for every identity that fits a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Who granted it.
    pub by: String,
}

/// Most grants.
const MAX_GRANTS: usize = 1_024;
/// Wrong claim codes before the door closes, and for how long.
const MAX_WRONG: u32 = 5;
const CLOSED_NS: u64 = 60_000_000_000;
const CLAIM: &str = "claim-code";

/// All grants.
#[derive(Debug, Clone, Default)]
pub struct Roles {
    /// From the files: identity pattern to role. They cannot be taken away from afar.
    files: Vec<(String, Role)>,
    grants: BTreeMap<String, Grant>,
    claim_hash: Option<String>,
    wrong: u32,
    closed_until: u64,
}

/// A new claim code and the record that `init` writes: the code is printed once, the hash is kept.
///
/// # Errors
/// [`Refusal`] when the system gives no random numbers.
pub fn make_claim_code() -> Result<(String, String), Refusal> {
    let code = hex(&random::<10>()?);
    let code: Vec<&str> = (0..5).map(|i| &code[i * 4..i * 4 + 4]).collect();
    let code = code.join("-");
    let hash = sha256_hex(code.as_bytes());
    Ok((code, hash))
}

impl Roles {
    /// Reads the grants.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records, files: Vec<(String, Role)>) -> Result<Self, JournalError> {
        let meta: BTreeMap<String, serde_json::Value> = records.read_all(Shelf::Meta)?;
        let claim_hash = meta.get(CLAIM).and_then(|v| v.as_str()).map(str::to_owned);
        Ok(Self { files, grants: records.read_all(Shelf::Grants)?, claim_hash, ..Self::default() })
    }

    /// Arms the claim code, as `init` does: `hash` is the second part of [`make_claim_code`].
    pub fn arm(&mut self, hash: &str, step: &mut Step) {
        self.claim_hash = Some(hash.to_owned());
        step.put(Shelf::Meta, CLAIM, &hash);
    }

    /// The highest role of an identity.
    pub fn role(&self, actor: &Actor) -> Option<Role> {
        if actor.device.is_some() {
            return None;
        }
        let local = actor.name.starts_with("cli:").then_some(Role::Administrator);
        // What a fleet manager may deploy is what `[margo]` delegates; no client of a broker has such a name.
        let fleet = actor.name.starts_with("margo:").then_some(Role::Engineer);
        let files = self.files.iter().filter(|(who, _)| fits(who, &actor.name)).map(|(_, role)| *role);
        let granted = self.grants.iter().filter(|(who, _)| fits(who, &actor.name)).map(|(_, grant)| grant.role);
        files.chain(granted).chain(local).chain(fleet).max()
    }

    /// Whether an identity may do this.
    ///
    /// # Errors
    /// [`Refusal`] `not-allowed`, which names the role that is needed.
    pub fn check(&self, actor: &Actor, right: Right) -> Result<(), Refusal> {
        let needed = RIGHTS.iter().find(|(r, _)| *r == right).map_or(Role::Administrator, |(_, role)| *role);
        let has = self.role(actor);
        if has.is_some_and(|role| role >= needed) {
            return Ok(());
        }
        let has = has.map_or("no role", |r| r.as_str());
        let text = format!("{} has {has}; `{right}` needs {needed}: ask an administrator", actor.name);
        Err(Refusal::new("not-allowed", text))
    }

    /// Gives an identity (pattern) a role, or takes it away.
    ///
    /// # Errors
    /// [`Refusal`] for a pattern that is too wide to be meant, a device's identity or too many grants.
    pub fn grant(
        &mut self,
        now: Stamp,
        who: &str,
        role: Option<Role>,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let meant = who.len() <= 128 && who.bytes().all(|b| b.is_ascii_graphic());
        let wide = role > Some(Role::Viewer) && who.contains(['*', '?']) && !who.contains(':');
        if who.is_empty() || !meant || wide {
            let text =
                "`identity` must be like mqtt:local:anna; a pattern for more than viewers names its kind (mqtt:…)";
            return Err(Refusal::new("invalid", text));
        }
        if role.is_some() && self.grants.len() >= MAX_GRANTS && !self.grants.contains_key(who) {
            return Err(Refusal::new("too-many", format!("there are {MAX_GRANTS} grants; use patterns")));
        }
        let words = role.map_or("none", |r| r.as_str());
        step.audit(now, cause, "grant", format!("identities/{who}"), words.to_owned(), "done");
        match role {
            None => {
                self.grants.remove(who);
                step.delete(Shelf::Grants, who);
            }
            Some(role) => {
                let grant = Grant { role, by: cause.actor.clone() };
                step.put(Shelf::Grants, who, &grant);
                self.grants.insert(who.to_owned(), grant);
            }
        }
        Ok(())
    }

    /// The first administrator makes himself one.
    ///
    /// # Errors
    /// [`Refusal`] when the code is wrong or was used, or after too many wrong ones.
    pub fn claim(
        &mut self,
        now: Stamp,
        actor: &Actor,
        code: &str,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        if now.mono_ns < self.closed_until {
            return Err(Refusal::new("not-allowed", "too many wrong claim codes; wait a minute"));
        }
        let hash = sha256_hex(code.trim().as_bytes());
        let right = self.claim_hash.as_ref().is_some_and(|known| same_secret(known, &hash));
        if !right || actor.device.is_some() || actor.name.is_empty() {
            self.wrong += 1;
            if self.wrong >= MAX_WRONG {
                (self.wrong, self.closed_until) = (0, now.mono_ns.saturating_add(CLOSED_NS));
            }
            let text = "the claim code is wrong or was used; `fieldgate claim` on the gateway makes a new one";
            return Err(Refusal::new("not-allowed", text));
        }
        self.wrong = 0;
        self.claim_hash = None;
        step.delete(Shelf::Meta, CLAIM);
        step.audit(now, cause, "claim", format!("identities/{}", actor.name), "administrator".to_owned(), "done");
        let grant = Grant { role: Role::Administrator, by: "claim-code".to_owned() };
        step.put(Shelf::Grants, actor.name.clone(), &grant);
        self.grants.insert(actor.name.clone(), grant);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClockTrust;

    fn at(seconds: u64) -> Stamp {
        Stamp {
            wall_ms: 0,
            mono_ns: seconds * 1_000_000_000,
            uptime: Default::default(),
            trust: ClockTrust::Synchronised,
        }
    }

    #[test]
    fn every_right_has_one_role() {
        for &right in Right::ALL {
            assert_eq!(RIGHTS.iter().filter(|(r, _)| *r == right).count(), 1, "{right}");
        }
    }

    #[test]
    fn nobody_may_anything_by_default_and_devices_never() {
        let roles = Roles { files: vec![("*".to_owned(), Role::Administrator)], ..Roles::default() };
        let device = Actor { device: crate::model::DeviceId::new("pump").ok(), ..Actor::named("mqtt:device:pump") };
        assert!(roles.check(&device, Right::See).is_err());
        let roles = Roles::default();
        assert!(roles.check(&Actor::named("mqtt:local:anna"), Right::See).is_err());
        assert!(roles.check(&Actor::named("cli:uid=0"), Right::Grant).is_ok());
    }

    #[test]
    fn a_claim_code_works_once_and_guessing_closes_the_door() {
        let (code, hash) = make_claim_code().unwrap();
        let (mut roles, mut step) = (Roles::default(), Step::default());
        roles.arm(&hash, &mut step);
        let anna = Actor::named("mqtt:local:anna");
        let mut claim =
            |roles: &mut Roles, code: &str, t| roles.claim(at(t), &anna, code, &Cause::default(), &mut step);
        for _ in 0..5 {
            claim(&mut roles, "0000-0000-0000-0000-0000", 1).unwrap_err();
        }
        assert!(claim(&mut roles, &code, 2).unwrap_err().message.contains("wait"));
        claim(&mut roles, &code, 62).unwrap();
        assert_eq!(roles.role(&anna), Some(Role::Administrator));
        claim(&mut roles, &code, 63).unwrap_err();
    }

    #[test]
    fn a_pattern_for_everybody_gives_no_power() {
        let (mut roles, mut step) = (Roles::default(), Step::default());
        let mut grant = |who: &str, role| roles.grant(at(0), who, Some(role), &Cause::default(), &mut step);
        assert!(grant("*", Role::Operator).is_err());
        assert!(grant("*", Role::Viewer).is_ok());
        assert!(grant("mqtt:local:shift-*", Role::Operator).is_ok());
    }
}
