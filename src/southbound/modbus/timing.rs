//! How long things take on a serial line.

use std::time::Duration;

use super::{DataBits, Link, LinkOptions, Parity, SerialLine, StopBits};

/// Reply timeout on TCP when none is configured.
const TCP_REPLY: Duration = Duration::from_secs(1);

/// Characters around an RTU PDU: address and checksum.
const RTU_ENVELOPE: usize = 3;

/// Time of one character: start bit, data bits, parity and stop bits.
pub fn character(line: &SerialLine) -> Duration {
    let bits = 1
        + if line.data_bits == DataBits::Eight { 8 } else { 7 }
        + u32::from(line.parity != Parity::None)
        + if line.stop_bits == StopBits::Two { 2 } else { 1 };
    Duration::from_nanos(u64::from(bits) * 1_000_000_000 / u64::from(line.baud.max(1)))
}

/// Silence between frames: 3.5 characters, above 19,200 Bd always 1.75 ms (Modbus over Serial Line V1.02, 2.5.1.1).
pub fn silence(line: &SerialLine) -> Duration {
    if line.baud > 19_200 { Duration::from_micros(1_750) } else { character(line).mul_f64(3.5) }
}

/// Time that a request and its reply of these PDU lengths take on the wire, without the slave's own time.
pub fn on_wire(line: &SerialLine, request_pdu: usize, reply_pdu: usize) -> Duration {
    let characters = request_pdu + reply_pdu + 2 * RTU_ENVELOPE;
    character(line) * characters as u32 + silence(line)
}

/// How long to wait for the reply to a request of these PDU lengths.
pub fn reply_timeout(
    link: &Link,
    options: &LinkOptions,
    configured: Option<Duration>,
    request: usize,
    reply: usize,
) -> Duration {
    match (configured, link) {
        (Some(timeout), _) => timeout,
        (None, Link::Serial(line)) => on_wire(line, request, reply) + options.turnaround,
        (None, Link::Tcp { .. } | Link::RtuOverTcp { .. }) => TCP_REPLY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_arithmetic_matches_the_standard() {
        let slow = SerialLine::new("x", 9600);
        assert_eq!(character(&slow), Duration::from_nanos(11 * 1_000_000_000 / 9600));
        assert!((silence(&slow).as_secs_f64() - 0.00401).abs() < 0.00001);
        assert_eq!(silence(&SerialLine::new("x", 115_200)), Duration::from_micros(1_750));
        // 125 registers at 9600 8E1: 8 + 255 characters and the silence, about 305 ms.
        let wire = on_wire(&slow, 5, 252);
        assert!((wire.as_secs_f64() - 0.3054).abs() < 0.001, "{wire:?}");
    }
}
