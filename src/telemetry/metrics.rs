//! The catalogue of everything that is measured, and the form in which measurements travel.

use std::sync::Arc;

/// How an instrument's value moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows within one run of the process.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Instrument {
    /// OpenTelemetry name.
    pub name: &'static str,
    /// UCUM unit.
    pub unit: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// One sentence.
    pub description: &'static str,
}

/// One value of one instrument.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Name of an instrument of the [`CATALOGUE`].
    pub name: &'static str,
    /// What it belongs to, such as `("device", "pump-1")`.
    pub labels: Vec<(&'static str, String)>,
    /// The value in the instrument's unit.
    pub value: f64,
}

impl Measurement {
    /// A measurement without labels.
    pub fn new(name: &'static str, value: f64) -> Self {
        Self { name, labels: Vec::new(), value }
    }

    /// Adds a label.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((key, value.into()));
        self
    }
}

/// Gives all current measurements; called from exporter threads, must not block.
pub type MeasurementSource = Arc<dyn Fn() -> Vec<Measurement> + Send + Sync>;

const fn counter(name: &'static str, unit: &'static str, description: &'static str) -> Instrument {
    Instrument { name, unit, kind: Kind::Counter, description }
}

const fn gauge(name: &'static str, unit: &'static str, description: &'static str) -> Instrument {
    Instrument { name, unit, kind: Kind::Gauge, description }
}

/// Every instrument; `docs/operations.md` lists them.
pub const CATALOGUE: &[Instrument] = &[
    gauge("process.uptime", "s", "Seconds since the process started"),
    gauge("process.memory.usage", "By", "Resident memory of the process"),
    counter("fieldgate.samples.read", "{sample}", "Samples that drivers handed over"),
    counter("fieldgate.samples.kept", "{sample}", "Samples that passed the change filter"),
    counter("fieldgate.requests.refused", "{request}", "Requests refused: no right, not possible, out of order"),
    counter(
        "fieldgate.requests.malformed",
        "{request}",
        "Messages to request topics that are no request, or too large",
    ),
    counter("fieldgate.requests.repeated", "{request}", "Requests that came again and were answered again"),
    gauge("fieldgate.device.up", "1", "1 when the device answers"),
    counter("fieldgate.device.requests", "{request}", "Requests sent to the device"),
    counter("fieldgate.device.failures", "{request}", "Requests that failed"),
    counter("fieldgate.device.overruns", "{scan}", "Scans skipped, by cause"),
    gauge("fieldgate.store.bytes", "By", "Allocated bytes of a lane"),
    gauge("fieldgate.store.quota", "By", "Byte quota of a lane"),
    counter("fieldgate.store.evicted", "{record}", "Records evicted or lost in a lane"),
    gauge("fieldgate.store.write_amplification", "1", "Bytes written per byte of payload"),
    gauge("fieldgate.consumer.connected", "1", "1 when the consumer is connected"),
    gauge("fieldgate.consumer.pending", "{record}", "Records that the consumer has not confirmed"),
    gauge("fieldgate.consumer.oldest", "s", "Age of the oldest unconfirmed record"),
    counter("fieldgate.consumer.confirmed", "{record}", "Records that the consumer confirmed"),
    counter("fieldgate.consumer.lost", "{record}", "Records that the consumer will never get"),
    gauge("fieldgate.broker.clients", "{client}", "Clients on the embedded broker"),
    counter("fieldgate.broker.messages_in", "{message}", "Messages that clients published"),
    counter("fieldgate.broker.messages_out", "{message}", "Messages sent to subscribers"),
    counter("fieldgate.broker.slow_clients", "{client}", "Clients disconnected because they read too slowly"),
    counter("fieldgate.broker.refused", "{request}", "Connections, publications and subscriptions refused"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CATALOGUE.iter().map(|i| i.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len());
    }
}
