//! What is enrolled at EST servers: the gateway's own certificate and its SVID for a fleet manager. Whoever uses them looks at
//! the files.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{EVENTS, EventLog, HealthDesk, Severity, identity_directory, life, until_stopped};
use crate::app::supervisor::Supervisor;
use crate::config::Gateway;
use crate::config::checked::Est;
use crate::platform::clock::SharedClock;
use crate::platform::durable::Disk;
use crate::security::pki::BelievedTime;
use crate::security::pki::est::{EstConfig, EstEvent, EstKeeper};

/// Which of them.
#[derive(Debug, Clone, Copy)]
struct About {
    /// In words.
    what: &'static str,
    /// Whose standing problems these are, in health.
    part: &'static str,
}

const OWN: About = About { what: "the gateway's own certificate", part: "enrolment" };
#[cfg(feature = "margo")]
const SVID: About = About { what: "the SVID for the fleet manager", part: "enrolment of the SVID" };

/// One that is kept.
#[derive(Debug)]
pub(super) struct Enrolment {
    about: About,
    keeper: EstKeeper,
}

/// Those that the configuration names, with what is on disk of them.
pub(super) fn all(gateway: &Gateway, time: &BelievedTime, clock: &SharedClock) -> Result<Vec<Enrolment>, String> {
    let own = (OWN, &gateway.est, identity_directory(&gateway.identity.data_dir));
    #[cfg(feature = "margo")]
    let svid = gateway
        .margo
        .as_ref()
        .map(|margo| (SVID, &gateway.svid, crate::margo::identity::enrolment_directory(&margo.directory)));
    #[cfg(not(feature = "margo"))]
    let svid = None;
    let wanted = std::iter::once(own).chain(svid);
    wanted.filter_map(|(about, est, directory)| Some(open(about, est.as_ref()?, directory, time, clock))).collect()
}

fn open(
    about: About,
    est: &Est,
    directory: PathBuf,
    time: &BelievedTime,
    clock: &SharedClock,
) -> Result<Enrolment, String> {
    let anchors = std::fs::read_to_string(&est.anchors);
    let config = EstConfig {
        url: est.url.clone(),
        anchors_pem: anchors.map_err(|error| format!("read {}: {error}", est.anchors.display()))?,
        token: est.user.clone().zip(est.token.as_ref().map(|token| token.expose().to_owned())),
        common_name: est.common_name.clone(),
        uri: est.uri.clone(),
        directory,
        disk: Disk::default(),
    };
    let (keeper, _) = EstKeeper::new(config, time.clone(), clock.clone()).map_err(|error| error.to_string())?;
    Ok(Enrolment { about, keeper })
}

impl Enrolment {
    /// Enrols, renews and tells until the supervisor stops.
    pub(super) fn start(self, supervisor: &mut Supervisor, events: &EventLog, health: &HealthDesk) {
        let Self { about, keeper } = self;
        let token = supervisor.token();
        let (tell, told) = mpsc::channel(EVENTS);
        supervisor.spawn("enrolment", until_stopped(keeper.run(tell, token.clone()), token.clone()));
        supervisor.spawn("enrolment events", report(about, told, events.clone(), health.clone(), token));
    }
}

/// Turns what happens into events; what keeps the gateway from its certificate stands in health.
async fn report(
    about: About,
    mut told: mpsc::Receiver<EstEvent>,
    events: EventLog,
    health: HealthDesk,
    token: CancellationToken,
) -> Result<(), String> {
    let (mut standing, mut ending) = (None::<(&'static str, String)>, None::<String>);
    loop {
        let event = tokio::select! {
            () = token.cancelled() => return Ok(()),
            event = told.recv() => event,
        };
        let Some(event) = event else {
            return if token.is_cancelled() { Ok(()) } else { Err("the enrolment ended".to_owned()) };
        };
        let (severity, kind, text) = match event {
            EstEvent::Granted { serial, renewed } => {
                standing = None;
                let act = if renewed { "was renewed" } else { "was granted" };
                (Severity::Info, "identity-granted", format!("{} {act}, serial {serial}", about.what))
            }
            EstEvent::Pending(pause) => {
                let text = format!(
                    "{}: the enrolment server has not decided yet; asked again in {} s",
                    about.what,
                    pause.as_secs()
                );
                let news = standing.as_ref().is_none_or(|(code, _)| *code != "pending");
                standing = Some(("pending", text.clone()));
                if !news {
                    continue;
                }
                (Severity::Info, "enrolment-pending", text)
            }
            EstEvent::Failed { code, reason, retry_in } => {
                let text =
                    format!("enrolment of {} ({code}): {reason}; tried again in {} s", about.what, retry_in.as_secs());
                let news = standing.as_ref().is_none_or(|(known, _)| *known != code);
                standing = Some((code, format!("enrolment of {} ({code}): {reason}", about.what)));
                health.set_problems(about.part, problems(&standing, &ending));
                if !news {
                    continue;
                }
                let severity = match code {
                    "refused" | "wrong-server" | "unusable" => Severity::Alarm,
                    _ => Severity::Warning,
                };
                (severity, "enrolment-failed", text)
            }
            EstEvent::Alarm(change) => {
                let (severity, text) = life(about.what, change.to);
                ending = (severity != Severity::Info).then(|| text.clone());
                (severity, "certificate-life", text)
            }
        };
        health.set_problems(about.part, problems(&standing, &ending));
        events.report(severity, kind, "", text).await;
    }
}

fn problems(standing: &Option<(&'static str, String)>, ending: &Option<String>) -> Vec<String> {
    standing.iter().map(|(_, text)| text.clone()).chain(ending.clone()).collect()
}
