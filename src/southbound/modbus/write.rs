//! Writing one point: check, encode, send once, read back, compare.

use crate::model::Value;
use crate::southbound::{WriteDone, WriteError};

use super::client::{CallError, Client};
use super::driver::write_error;
use super::pdu::{Exception, Reply, Request};
use super::{Config, PointAddress, Table, WriteFunction, timing, values};

/// Borrows what a write needs.
#[derive(Debug)]
pub struct Writer<'a> {
    /// The connection.
    pub client: &'a mut Client,
    /// The unit.
    pub config: &'a Config,
    /// Whether FC 22 is still worth a try on this unit.
    pub mask_write: &'a mut bool,
}

impl Writer<'_> {
    /// Writes `value` (raw) and reads it back if so configured. The request is sent at most once.
    pub async fn write(&mut self, point: &PointAddress, value: &Value) -> Result<WriteDone, WriteError> {
        if !point.table.is_writable() {
            return Err(WriteError::NotWritable(format!("the {} table is read-only", point.table.as_str())));
        }
        if point.table == Table::Coil {
            return self.write_coil(point, value).await;
        }
        let range = |reason| WriteError::OutOfRange { value: value.clone(), reason };
        let mut data = Vec::with_capacity(usize::from(point.width()) * 2);
        values::encode(point, value, &mut data).map_err(range)?;
        // As the device will hold it: a float rounded to its type, a text filled up.
        let written = values::decode(point, &data).map_err(|reason| range(reason.as_str().to_owned()))?;
        if self.config.write.function == WriteFunction::Single && data.len() > 2 {
            let text =
                format!("it takes {} registers, and this device is configured for single writes only", point.width());
            return Err(WriteError::NotWritable(text));
        }
        if let Some(mask) = values::mask(point) {
            self.write_bits(point, &data, &mask).await?;
        } else if self.config.write.read_write && self.config.write.verify && data.len() <= 2 * 121 {
            return self.write_and_read(point, &data, &written).await;
        } else {
            self.write_registers(point.address, &data).await?;
        }
        self.verify(point, written).await
    }

    async fn write_coil(&mut self, point: &PointAddress, value: &Value) -> Result<WriteDone, WriteError> {
        let on = values::to_bool(value).map_err(|reason| WriteError::OutOfRange { value: value.clone(), reason })?;
        let address = point.address;
        let request = match self.config.write.function {
            WriteFunction::Multiple => Request::WriteCoils { address, on },
            WriteFunction::Auto | WriteFunction::Single => Request::WriteCoil { address, on },
        };
        self.confirm(&request).await?;
        self.verify(point, Value::Bool(on)).await
    }

    async fn write_registers(&mut self, address: u16, data: &[u8]) -> Result<(), WriteError> {
        match (data, self.config.write.function) {
            (&[high, low], WriteFunction::Auto | WriteFunction::Single) => {
                self.confirm(&Request::WriteRegister { address, word: u16::from_be_bytes([high, low]) }).await
            }
            _ => self.confirm(&Request::WriteRegisters { address, data }).await,
        }
    }

    /// Changes some bits of one or more registers: FC 22, or read, change and write while nobody else uses the link.
    async fn write_bits(&mut self, point: &PointAddress, data: &[u8], mask: &[u8]) -> Result<(), WriteError> {
        if let (&[data_high, data_low], &[mask_high, mask_low], true) = (data, mask, *self.mask_write) {
            let and = !u16::from_be_bytes([mask_high, mask_low]);
            let or = u16::from_be_bytes([data_high, data_low]);
            match self.confirm(&Request::MaskRegister { address: point.address, and, or }).await {
                Err(WriteError::DeviceException { code, .. }) if code == Exception::ILLEGAL_FUNCTION.0 => {
                    // A refused function was not carried out: the other way is no repetition.
                    *self.mask_write = false;
                }
                Err(error @ WriteError::Timeout(_)) => {
                    *self.mask_write = false;
                    return Err(error);
                }
                done => return done,
            }
        }
        let mut registers = self.read(point).await.map_err(|problem| match problem {
            ReadProblem::Call(error) if !error.may_be_sent() => write_error(error),
            problem => WriteError::NotSent(problem.to_string()),
        })?;
        for ((register, new), mask) in registers.iter_mut().zip(data).zip(mask) {
            *register = *register & !mask | new & mask;
        }
        self.write_registers(point.address, &registers).await
    }

    async fn write_and_read(
        &mut self,
        point: &PointAddress,
        data: &[u8],
        written: &Value,
    ) -> Result<WriteDone, WriteError> {
        let request = Request::WriteAndRead { address: point.address, data };
        let limit = self.limit(&request);
        match self.client.call(self.config.unit, &request, limit).await.map_err(write_error)? {
            Reply::Data(registers) => compare(self.config, point, written, registers),
            Reply::Exception(refusal) => Err(refused(refusal)),
            Reply::Done => Err(WriteError::AnswerLost("a confirmation instead of data".into())),
        }
    }

    async fn verify(&mut self, point: &PointAddress, written: Value) -> Result<WriteDone, WriteError> {
        if !self.config.write.verify {
            return Ok(WriteDone { read_back: None });
        }
        tokio::time::sleep(self.config.write.verify_delay).await;
        let data = self.read(point).await.map_err(|problem| WriteError::ReadBackFailed(problem.to_string()))?;
        compare(self.config, point, &written, &data)
    }

    /// Reads the items of one point; repeated like any read, for nothing is changed by it.
    async fn read(&mut self, point: &PointAddress) -> Result<Vec<u8>, ReadProblem> {
        let request = Request::Read { table: point.table, address: point.address, count: point.width() };
        let limit = self.limit(&request);
        let mut tries = self.config.retries;
        loop {
            match self.client.call(self.config.unit, &request, limit).await {
                Ok(Reply::Data(data)) => return Ok(data.to_vec()),
                Ok(Reply::Exception(refusal)) => return Err(ReadProblem::Refused(refusal.text())),
                Ok(Reply::Done) => return Err(ReadProblem::Refused("a confirmation instead of data".into())),
                Err(error) if tries == 0 => return Err(ReadProblem::Call(error)),
                Err(_) => tries -= 1,
            }
        }
    }

    async fn confirm(&mut self, request: &Request<'_>) -> Result<(), WriteError> {
        let limit = self.limit(request);
        match self.client.call(self.config.unit, request, limit).await.map_err(write_error)? {
            Reply::Done => Ok(()),
            Reply::Exception(refusal) => Err(refused(refusal)),
            Reply::Data(_) => Err(WriteError::AnswerLost("data instead of a confirmation".into())),
        }
    }

    fn limit(&self, request: &Request<'_>) -> std::time::Duration {
        let (link, options) = self.client.link();
        timing::reply_timeout(link, options, self.config.reply_timeout, request.length(), request.longest_reply())
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadProblem {
    #[error(transparent)]
    Call(CallError),
    #[error("{0}")]
    Refused(String),
}

fn refused(refusal: Exception) -> WriteError {
    WriteError::DeviceException { code: refusal.0, text: refusal.text() }
}

fn compare(config: &Config, point: &PointAddress, written: &Value, data: &[u8]) -> Result<WriteDone, WriteError> {
    let read = if point.table.is_bits() { Ok(Value::Bool(values::bit(data, 0))) } else { values::decode(point, data) };
    let read = read.map_err(|reason| WriteError::ReadBackFailed(reason.as_str().to_owned()))?;
    match values::same(written, &read, config.write.tolerance) {
        true => Ok(WriteDone { read_back: Some(read) }),
        false => Err(WriteError::ReadBackMismatch { written: written.clone(), read }),
    }
}
