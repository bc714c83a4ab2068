//! Reads `[pki]` and `[est]`.

use std::time::Duration;

use crate::config::checked::{Est, Identity, Pki};
use crate::config::reader::Reader;
use crate::config::tree::Item;
use crate::config::value::{boolean, duration, line};
use crate::security::pki::ServerNames;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn pki(section: &Reader<'_>, gateway: &Identity) -> Pki {
    let life = || duration(DAY..=DAY * 3_650);
    Pki {
        name: section.or("name", format!("fieldgate {}", gateway.id), line(64)),
        create: section.or("create", true, boolean),
        names: section.list("names", server_name).unwrap_or_default(),
        server_life: section.or("server_life", DAY * 365, life()),
        client_life: section.or("client_life", DAY * 365, life()),
    }
}

/// Checked where it will be used: as a name in a certificate.
fn server_name(item: &Item) -> Result<String, String> {
    let text = line(253)(item)?;
    let legal = ServerNames::of_host("gateway").and_then(|names| names.with_name(&text));
    legal.map(|_| text.clone()).map_err(|_| format!("\"{text}\" is no host name and no IP address"))
}

pub(super) fn est(section: &Reader<'_>, gateway: &Identity) -> Option<Est> {
    let common_name = section.or("common_name", gateway.id.to_string(), line(64));
    enrolment(section, common_name, None)
}

/// The server, and what is asked of it.
pub(super) fn enrolment(section: &Reader<'_>, common_name: String, uri: Option<String>) -> Option<Est> {
    if !cfg!(feature = "est") {
        let text = "this fieldgate was built without enrolment (cargo feature `est`)";
        section.context.error(&section.table.place, section.key(""), text);
    }
    let url = section.required("url", "url = \"https://ca.example:8085\"", url);
    if !section.has("anchors") {
        let text = "`anchors` is missing; write anchors = \"tls/est-root.pem\": the server is always verified";
        section.context.error(&section.table.place, section.key("anchors"), text);
    }
    let anchors = section.file("anchors");
    let user = section.optional("user", line(1000));
    let token = section.secret("token");
    if section.has("token") != section.has("user") {
        let there = if section.has("token") { "token" } else { "user" };
        section.error(there, "enrolment needs both `user` and `token`, or neither");
    }
    Some(Est { url: url?, anchors: anchors?, user, token, common_name, uri })
}

fn url(item: &Item) -> Result<String, String> {
    let text = line(1000)(item)?;
    let host = text.strip_prefix("https://").map(|rest| rest.split('/').next().unwrap_or_default());
    match host.map(|host| crate::config::value::host_port(host, Some(443))) {
        Some(Ok(_)) if !text.contains(['@', '?', '#']) => Ok(text),
        _ => Err(format!(
            "\"{text}\" is no enrolment server; write https://host, https://host:port or https://host/label"
        )),
    }
}
