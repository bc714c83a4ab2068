//! Modbus behind the [`Driver`] seam: units, their plans, what they have taught, and one connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use crate::model::{Access, Reason, Value};
use crate::southbound::driver::{Answer, Driver, Fault, Scope, Tally};
use crate::southbound::{DeviceConfig, DriverConfig, ExchangeError, Identity, PointResult, WriteDone, WriteError};

use super::client::{CallError, Client};
use super::identify::{self, Next, Walk};
use super::pdu::{Exception, Reply, Request};
use super::plan::{self, Learned, ReadRequest};
use super::{Config, Link, LinkOptions, timing, values, write};

/// All units on one Modbus link.
#[derive(Debug)]
pub struct ModbusDriver {
    client: Client,
    units: Vec<Option<Unit>>,
}

/// One unit.
#[derive(Debug)]
struct Unit {
    name: String,
    config: Arc<Config>,
    writable: Vec<bool>,
    groups: Vec<Vec<u32>>,
    plans: Vec<Vec<Arc<ReadRequest>>>,
    /// When the first of the refused points was refused.
    refused_at: Option<Instant>,
    learned: Learned,
    mask_write: bool,
}

impl ModbusDriver {
    /// A driver for one link; units are attached afterwards.
    pub fn new(link: Link, options: LinkOptions) -> Self {
        Self { client: Client::new(link, options), units: Vec::new() }
    }

    fn unit(&self, slot: usize) -> &Unit {
        self.units.get(slot).and_then(Option::as_ref).expect("the link task uses only slots that it attached")
    }

    fn unit_mut(&mut self, slot: usize) -> &mut Unit {
        self.units.get_mut(slot).and_then(Option::as_mut).expect("the link task uses only slots that it attached")
    }
}

impl Unit {
    fn new(device: &DeviceConfig, config: &Config) -> Self {
        let mut unit = Self {
            name: device.device.id.to_string(),
            writable: device.device.points.iter().map(|point| point.access != Access::Read).collect(),
            groups: device.groups.iter().map(|group| group.points.clone()).collect(),
            plans: Vec::new(),
            refused_at: None,
            learned: Learned::default(),
            mask_write: config.write.mask_write,
            config: Arc::new(config.clone()),
        };
        unit.replan();
        unit
    }

    fn replan(&mut self) {
        self.plans = self.groups.iter().map(|points| plan::plan(&self.config, points, &self.learned)).collect();
    }

    /// The device refused a request: learn from it, and say what to send instead.
    fn refused(&mut self, request: &ReadRequest) -> Option<(Arc<ReadRequest>, Arc<ReadRequest>)> {
        self.learned.holes.insert(request.as_hole());
        let halves = request.split();
        if halves.is_none() {
            self.learned.illegal.extend(request.entries.iter().map(|entry| entry.point));
            self.refused_at.get_or_insert_with(Instant::now);
        }
        self.replan();
        let (from, to) = (request.address, request.address + (request.count - 1));
        debug!(
            device = self.name,
            table = request.table.as_str(),
            from,
            to,
            "range refused, reads are planned around it"
        );
        halves.map(|(left, right)| (Arc::new(left), Arc::new(right)))
    }
}

/// Longest wait for the reply to a request.
fn limit(client: &Client, config: &Config, request: &Request<'_>) -> Duration {
    let (link, options) = client.link();
    timing::reply_timeout(link, options, config.reply_timeout, request.length(), request.longest_reply())
}

/// Outcomes of the points of an answered request.
fn decode(config: &Config, request: &ReadRequest, data: &[u8], results: &mut Vec<PointResult>) {
    results.extend(request.entries.iter().map(|entry| {
        let address = &config.points[entry.point as usize];
        let outcome = if request.table.is_bits() {
            Ok(Value::Bool(values::bit(data, entry.offset)))
        } else {
            let from = usize::from(entry.offset) * 2;
            let registers = data.get(from..from + usize::from(entry.width) * 2);
            registers.ok_or(Reason::ProtocolError).and_then(|registers| values::decode(address, registers))
        };
        PointResult { point: entry.point, outcome, at: None }
    }));
}

fn fail(request: &ReadRequest, reason: Reason, results: &mut Vec<PointResult>) {
    results.extend(request.entries.iter().map(|entry| PointResult {
        point: entry.point,
        outcome: Err(reason),
        at: None,
    }));
}

impl Driver for ModbusDriver {
    type Step = Arc<ReadRequest>;

    fn attach(&mut self, slot: usize, device: &DeviceConfig) {
        let DriverConfig::Modbus(config) = &device.driver;
        if self.units.len() <= slot {
            self.units.resize_with(slot + 1, || None);
        }
        self.units[slot] = Some(Unit::new(device, config));
    }

    fn detach(&mut self, slot: usize) {
        if let Some(unit) = self.units.get_mut(slot) {
            *unit = None;
        }
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        self.client.connect().await.map_err(|error| error.fault())
    }

    async fn identify(&mut self, slot: usize) -> Result<Option<Identity>, Fault> {
        let (address, config) = (self.unit(slot).config.unit, self.unit(slot).config.clone());
        let mut walk = Walk::default();
        let mut ask = walk.first();
        loop {
            let limit = limit(&self.client, &config, &ask);
            match self.client.call(address, &ask, limit).await {
                Ok(Reply::Data(data)) => match walk.reply(data) {
                    Next::Ask(next) => ask = next,
                    Next::Done => break,
                },
                // It has no time; that is not to say that it does not know.
                Ok(Reply::Exception(refusal)) if refusal.is_busy() && !walk.has_objects() => {
                    let (scope, reason) = (Scope::Device, Reason::DeviceException);
                    return Err(Fault { scope, reason, text: refusal.text() });
                }
                Ok(_) => break,
                // What was told before the device fell silent is still true.
                Err(_) if walk.has_objects() => break,
                Err(error) => return Err(error.fault()),
            }
        }
        if let Some(identity) = walk.finish(config.serial_object) {
            return Ok(Some(identity));
        }
        let limit = limit(&self.client, &config, &Request::ServerId);
        match self.client.call(address, &Request::ServerId, limit).await {
            Ok(Reply::Data(data)) => Ok(identify::server_id(data)),
            Ok(_) => Ok(None),
            Err(error) => Err(error.fault()),
        }
    }

    fn plan(&mut self, slot: usize, group: usize, steps: &mut VecDeque<Self::Step>, results: &mut Vec<PointResult>) {
        let unit = self.unit_mut(slot);
        if unit.refused_at.is_some_and(|at| at.elapsed() >= unit.config.retry_refused) {
            unit.refused_at = None;
            unit.learned.illegal.clear();
            unit.replan();
        }
        steps.extend(unit.plans[group].iter().cloned());
        let refused = unit.groups[group].iter().filter(|point| unit.learned.illegal.contains(point));
        results.extend(refused.map(|&point| PointResult { point, outcome: Err(Reason::IllegalAddress), at: None }));
    }

    fn probe(&self, slot: usize) -> Option<Self::Step> {
        let plans = &self.unit(slot).plans;
        plans.iter().flatten().min_by_key(|request| (request.table.is_bits(), request.count)).cloned()
    }

    async fn read(
        &mut self,
        slot: usize,
        step: &Self::Step,
        steps: &mut VecDeque<Self::Step>,
        results: &mut Vec<PointResult>,
    ) -> Result<Answer, Fault> {
        let unit =
            self.units.get_mut(slot).and_then(Option::as_mut).expect("the link task uses only slots that it attached");
        let request = Request::Read { table: step.table, address: step.address, count: step.count };
        let limit = limit(&self.client, &unit.config, &request);
        match self.client.call(unit.config.unit, &request, limit).await.map_err(|error| error.fault())? {
            Reply::Data(data) => {
                decode(&unit.config, step, data, results);
                if let Some(hole) = step.answered()
                    && unit.learned.holes.insert(hole)
                {
                    info!(
                        device = unit.name,
                        table = hole.table.as_str(),
                        from = hole.first,
                        to = hole.last,
                        "address hole learned"
                    );
                    unit.replan();
                }
                Ok(Answer::Values)
            }
            Reply::Exception(refusal @ (Exception::ILLEGAL_ADDRESS | Exception::ILLEGAL_VALUE)) => {
                match unit.refused(step) {
                    Some((left, right)) => {
                        steps.push_front(right);
                        steps.push_front(left);
                    }
                    None if refusal == Exception::ILLEGAL_ADDRESS => fail(step, Reason::IllegalAddress, results),
                    None => fail(step, Reason::DeviceException, results),
                }
                Ok(Answer::Refused)
            }
            Reply::Exception(refusal) if refusal.is_no_answer() => {
                Err(Fault { scope: Scope::Device, reason: Reason::Timeout, text: refusal.text() })
            }
            Reply::Exception(_) | Reply::Done => {
                fail(step, Reason::DeviceException, results);
                Ok(Answer::Refused)
            }
        }
    }

    fn points(&self, step: &Self::Step, each: impl FnMut(u32)) {
        step.entries.iter().map(|entry| entry.point).for_each(each);
    }

    async fn write(&mut self, slot: usize, point: u32, value: &Value) -> Result<WriteDone, WriteError> {
        let unit =
            self.units.get_mut(slot).and_then(Option::as_mut).expect("the link task uses only slots that it attached");
        if !unit.writable.get(point as usize).copied().unwrap_or(false) {
            return Err(WriteError::NotWritable("its configuration allows reading only".into()));
        }
        let config = unit.config.clone();
        let mut writer = write::Writer { client: &mut self.client, config: &config, mask_write: &mut unit.mask_write };
        writer.write(&config.points[point as usize], value).await
    }

    async fn exchange(&mut self, slot: usize, pdu: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        let known = "only functions 3, 16 and 21 in their one form are carried";
        let request = Request::read_pdu(pdu).ok_or_else(|| ExchangeError::Unsupported(known.to_owned()))?;
        let config = self.unit(slot).config.clone();
        let limit = limit(&self.client, &config, &request);
        match self.client.call(config.unit, &request, limit).await {
            Ok(reply) => Ok(request.write_pdu(reply)),
            Err(error @ CallError::Connect { .. }) => Err(ExchangeError::LinkDown(error.to_string())),
            Err(error @ (CallError::Held(_) | CallError::Unsure(_))) => Err(ExchangeError::OffScan(error.to_string())),
            Err(error) => Err(ExchangeError::NoAnswer(error.to_string())),
        }
    }

    fn held(&self, slot: usize) -> Option<Duration> {
        self.client.held(self.unit(slot).config.unit)
    }

    fn close(&mut self) {
        self.client.close();
    }

    fn closes_after_cycle(&self) -> bool {
        self.client.link().1.close_after_cycle
    }

    fn take_tally(&mut self) -> Tally {
        self.client.take_tally()
    }
}

/// A failed call as a writer's error: what matters is whether the request may have been sent.
pub(super) fn write_error(error: CallError) -> WriteError {
    match error {
        CallError::Connect { .. } => WriteError::LinkDown(error.to_string()),
        CallError::Held(_) | CallError::Unsure(_) => WriteError::OffScan(error.to_string()),
        CallError::Timeout(limit) => WriteError::Timeout(limit),
        _ => WriteError::AnswerLost(error.to_string()),
    }
}
