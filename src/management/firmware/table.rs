//! The stages of a job and what leads from one to the next. The table is the truth: code, diagram and tests read it.

use super::Refusal;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// There is none.
    Idle,
    /// Admitted; waits for approval.
    Offered,
    /// Approved; waits for its turn.
    Approved,
    /// Bytes are coming in.
    Transferring,
    /// All bytes are there and are the right ones.
    Verified,
    /// Being put in place.
    Installing,
    /// In place; has to show that it is healthy.
    Proving,
    /// Healthy.
    Done,
    /// It was not healthy; the old one runs again.
    RolledBack,
    /// It could not be fetched or installed, and the old one runs on; or the device fell silent, and nobody can say what runs.
    Failed,
    /// It was not let in.
    Refused,
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A manifest was admitted.
    Offer,
    /// An operator or a maintenance window said yes.
    Approve,
    /// Somebody said no.
    Reject,
    /// The first byte is asked for.
    Start,
    /// More bytes are durable.
    Progress,
    /// All bytes are there and checked.
    Verify,
    /// The bytes are not those that were signed.
    Mismatch,
    /// Installation begins.
    Install,
    /// The new firmware is in place and will start.
    Installed,
    /// It shows that it is healthy.
    Healthy,
    /// It does not.
    Unhealthy,
    /// It cannot be fetched or installed, for good, or the target is silent after it.
    Fail,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: Stage,
    /// What happens.
    pub event: Event,
    /// After.
    pub to: Stage,
}

const fn row(from: Stage, event: Event, to: Stage) -> Transition {
    Transition { from, event, to }
}

/// Everything that is possible. What is not here is refused.
pub const TABLE: [Transition; 25] = [
    row(Stage::Idle, Event::Offer, Stage::Offered),
    row(Stage::Done, Event::Offer, Stage::Offered),
    row(Stage::RolledBack, Event::Offer, Stage::Offered),
    row(Stage::Failed, Event::Offer, Stage::Offered),
    row(Stage::Refused, Event::Offer, Stage::Offered),
    row(Stage::Offered, Event::Approve, Stage::Approved),
    row(Stage::Offered, Event::Reject, Stage::Refused),
    row(Stage::Approved, Event::Reject, Stage::Refused),
    row(Stage::Approved, Event::Start, Stage::Transferring),
    row(Stage::Approved, Event::Fail, Stage::Failed),
    row(Stage::Transferring, Event::Progress, Stage::Transferring),
    row(Stage::Transferring, Event::Reject, Stage::Refused),
    row(Stage::Transferring, Event::Verify, Stage::Verified),
    row(Stage::Transferring, Event::Mismatch, Stage::Refused),
    row(Stage::Transferring, Event::Fail, Stage::Failed),
    row(Stage::Verified, Event::Reject, Stage::Refused),
    row(Stage::Verified, Event::Install, Stage::Installing),
    row(Stage::Verified, Event::Mismatch, Stage::Refused),
    row(Stage::Installing, Event::Progress, Stage::Installing),
    row(Stage::Installing, Event::Installed, Stage::Proving),
    row(Stage::Installing, Event::Mismatch, Stage::Refused),
    row(Stage::Installing, Event::Fail, Stage::Failed),
    row(Stage::Proving, Event::Healthy, Stage::Done),
    row(Stage::Proving, Event::Unhealthy, Stage::RolledBack),
    row(Stage::Proving, Event::Fail, Stage::Failed),
];

impl Stage {
    /// All stages.
    pub const ALL: [Self; 11] = [
        Self::Idle,
        Self::Offered,
        Self::Approved,
        Self::Transferring,
        Self::Verified,
        Self::Installing,
        Self::Proving,
        Self::Done,
        Self::RolledBack,
        Self::Failed,
        Self::Refused,
    ];

    /// Stable name, as on the topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Offered => "offered",
            Self::Approved => "approved",
            Self::Transferring => "transferring",
            Self::Verified => "verified",
            Self::Installing => "installing",
            Self::Proving => "proving",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }

    /// Whether nothing more happens by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Idle | Self::Done | Self::RolledBack | Self::Failed | Self::Refused)
    }
}

impl Event {
    /// All events.
    pub const ALL: [Self; 12] = [
        Self::Offer,
        Self::Approve,
        Self::Reject,
        Self::Start,
        Self::Progress,
        Self::Verify,
        Self::Mismatch,
        Self::Install,
        Self::Installed,
        Self::Healthy,
        Self::Unhealthy,
        Self::Fail,
    ];

    /// Name for people and the diagram.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Approve => "approve",
            Self::Reject => "reject",
            Self::Start => "start",
            Self::Progress => "progress",
            Self::Verify => "verify",
            Self::Mismatch => "mismatch",
            Self::Install => "install",
            Self::Installed => "installed",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Fail => "fail",
        }
    }
}

/// Where `event` leads from `from`.
///
/// # Errors
/// [`Refusal::OutOfOrder`] when the table has no such row.
pub fn next(from: Stage, event: Event) -> Result<Stage, Refusal> {
    let row = TABLE.iter().find(|row| row.from == from && row.event == event);
    row.map(|row| row.to).ok_or(Refusal::OutOfOrder { event: event.as_str(), stage: from.as_str() })
}

/// The table as a Mermaid state diagram, for `docs/firmware.md`.
pub fn diagram() -> String {
    let state = |stage: Stage| stage.as_str().replace('-', "_");
    let mut text = String::from("stateDiagram-v2\n    [*] --> idle\n");
    for row in TABLE.iter().filter(|row| row.from != row.to) {
        text.push_str(&format!("    {} --> {}: {}\n", state(row.from), state(row.to), row.event.as_str()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_from_every_stage_leads_to_a_listed_stage_or_is_refused_with_its_reason() {
        let mut possible = 0;
        for from in Stage::ALL {
            for event in Event::ALL {
                match next(from, event) {
                    Ok(to) => {
                        possible += 1;
                        assert!(TABLE.contains(&Transition { from, event, to }));
                    }
                    Err(refusal) => assert_eq!(refusal.code(), "out-of-order"),
                }
            }
        }
        assert_eq!(possible, TABLE.len(), "no row is hidden behind another");
    }

    #[test]
    fn every_stage_is_reached_and_every_one_that_is_not_final_leads_to_an_end() {
        for stage in Stage::ALL {
            assert!(stage == Stage::Idle || TABLE.iter().any(|row| row.to == stage), "{stage:?} is reached");
            let mut reached = vec![stage];
            while let Some(row) = TABLE.iter().find(|row| reached.contains(&row.from) && !reached.contains(&row.to)) {
                reached.push(row.to);
            }
            assert!(reached.iter().any(|stage| stage.is_final()), "{stage:?} ends");
        }
        assert!(next(Stage::Installing, Event::Reject).is_err(), "once it is being put in place nobody pulls the plug");
    }

    #[test]
    fn the_diagram_in_the_documentation_is_this_table() {
        let documentation = include_str!("../../../docs/firmware.md");
        assert!(documentation.contains(&diagram()), "put this into docs/firmware.md:\n{}", diagram());
    }
}
