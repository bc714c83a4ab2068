//! Requests of the sessions on their way to the command desk, to the firmware desk or to device management.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::app::firmware::{FirmwareDesk, FirmwareRequests, is_about_firmware};
use crate::management::command::{CommandRequest, CommandService, Receipt};
use crate::management::request::Actor;
use crate::management::roles::Right;
use crate::management::service::Management;
use crate::model::DeviceId;
use crate::northbound::{Origin, Request, RequestKind};
use crate::security::DEVICE;

/// Hands requests over until `token` is cancelled.
pub async fn run(
    commands: CommandService,
    management: Management,
    firmware: FirmwareDesk,
    mut requests: mpsc::Receiver<Request>,
    token: CancellationToken,
) -> Result<(), String> {
    let mut firmware = FirmwareRequests::new(firmware, management.clone());
    loop {
        let request = tokio::select! {
            () = token.cancelled() => return Ok(()),
            next = requests.recv() => match next {
                Some(request) => request,
                None => return Ok(()),
            },
        };
        let Request { origin, kind, receipt } = request;
        let taken = match kind {
            RequestKind::Command { device, command } => {
                let asks = actor(&origin);
                let may = management.look(move |core| core.roles().check(&asks, Right::Command)).await;
                let forbidden = may.map_err(|e| e.to_string())?.err().map(|refusal| refusal.message);
                let request = CommandRequest { device, command, actor: origin.actor(), forbidden };
                commands.submit(request, Receipt::new(move || receipt.accept())).await.map_err(|e| e.to_string())
            }
            RequestKind::Management { topic, encoding, payload } if is_about_firmware(&topic) => {
                let stored = Receipt::new(move || receipt.accept());
                let taken = firmware.take(actor(&origin), &topic, encoding, &payload, stored).await;
                taken.map_err(|e| e.to_string())
            }
            RequestKind::Management { topic, encoding, payload } => {
                let stored = Receipt::new(move || receipt.accept());
                let asked = management.request_stored(actor(&origin), &topic, encoding, &payload, stored).await;
                asked.map(drop).map_err(|e| e.to_string())
            }
        };
        if let Err(error) = taken {
            return if token.is_cancelled() { Ok(()) } else { Err(error) };
        }
    }
}

/// Who asks, as far as his broker proved it.
fn actor(origin: &Origin) -> Actor {
    let device = origin.sender.name.strip_prefix(DEVICE).and_then(|id| DeviceId::new(id).ok());
    Actor {
        name: origin.name(),
        from: origin.sender.address.clone(),
        // The name that the plant's authority certified: it outlives renewals.
        certificate: device.is_some().then(|| origin.sender.name.clone()),
        device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::northbound::Sender;

    #[test]
    fn a_device_is_known_by_the_name_that_only_a_certificate_gives() {
        let of = |name: &str| {
            let sender = Sender { name: name.to_owned(), address: "192.0.2.4".to_owned() };
            actor(&Origin { consumer: "local".to_owned(), sender })
        };
        assert_eq!(of("anna").name, "mqtt:local:anna");
        assert_eq!((of("anna").device, of("anna").from.as_str()), (None, "192.0.2.4"));
        assert_eq!(of("device:pump-1").device.unwrap().as_str(), "pump-1");
        assert_eq!(of("").name, "mqtt:local");
    }
}
