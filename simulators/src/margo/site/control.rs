//! The page and the control API, on loopback only.
//!
//! | call | body | effect |
//! |---|---|---|
//! | `GET /` | | the page |
//! | `GET /api/state` | | everything that the services know and have seen; `?requests=N` for the newest N (200) |
//! | `POST /api/deployments` | a deployment as JSON, or YAML as `application/yaml` | wants it; `{"id": …}` |
//! | `DELETE /api/deployments/{id}` | | does not want it any more |
//! | `POST /api/faults` | a fault, such as `{"fault": "sha512", "times": 1}` | adds it |
//! | `DELETE /api/faults` | | clears all faults of all services |
//! | `POST /api/down` | `{"down": "refused"}` | `up`, `refused`, `reset`, `silent` |
//! | `POST /api/serve` | `{"flaw": "expired"}` | serves a fresh SVID, bad or (`none`) good |
//! | `POST /api/clients/{id}/retire` | `{"retired": true}` | ends the relationship |
//! | `POST /api/clients/{id}/svid` | `{"life_seconds": 3600, "flaw": "none"}` | `{"chain": PEM, "key": PEM}` |
//! | `POST /api/clients/{id}/sign` | `{"request": PEM, "life_seconds": 3600}` | `{"chain": PEM}` |
//! | `POST /api/roots` | `{"act": "add"}` or `{"act": "retire-old"}` | rotates the bundle |
//! | `POST /api/discovery/faults` | a fault | spoils discovery or the bundle |
//! | `POST /api/discovery/down`, `/api/discovery/serve` | `{"down": …}`, `{"certificate": "other-name"}` | |
//! | `POST /api/registry/faults`, `/api/registry/down` | a fault, `{"down": …}` | spoils pulls |
//! | `POST /api/registry/artifacts` | `{"name", "tag", "type", "layers": [{"media_type", "title", "text"}]}` | `{"digest": …}` |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::Services;
use crate::margo::{
    Deployment, DiscoveryFault, Down, Flaw, Layer, MargoSimError, RegistryFault, Rule, Times, WebCertificate,
};

const PAGE: &str = include_str!("page.html");

/// The listener; it ends when dropped.
pub(super) struct Control {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Control {
    pub async fn start(address: SocketAddr, services: Arc<Services>) -> Result<Self, MargoSimError> {
        if !address.ip().is_loopback() {
            return Err(MargoSimError::NotLoopback(address));
        }
        let bind = |source| MargoSimError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router(services)).await {
                tracing::error!(%error, "the control API has ended");
            }
        });
        Ok(Self { address, _tasks: tasks })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn router(services: Arc<Services>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/api/state", get(state))
        .route("/api/deployments", post(deploy))
        .route("/api/deployments/{id}", delete(remove))
        .route("/api/faults", post(inject).delete(clear))
        .route("/api/down", post(down))
        .route("/api/serve", post(serve))
        .route("/api/clients/{id}/retire", post(retire))
        .route("/api/clients/{id}/svid", post(issue))
        .route("/api/clients/{id}/sign", post(sign))
        .route("/api/roots", post(roots))
        .route("/api/discovery/faults", post(discovery_fault))
        .route("/api/discovery/down", post(discovery_down))
        .route("/api/discovery/serve", post(discovery_serve))
        .route("/api/registry/faults", post(registry_fault))
        .route("/api/registry/down", post(registry_down))
        .route("/api/registry/artifacts", post(push))
        .with_state(services)
}

type Site = State<Arc<Services>>;

/// What went wrong, as JSON with 400.
struct Failed(MargoSimError);

impl From<MargoSimError> for Failed {
    fn from(error: MargoSimError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({ "error": self.0.to_string() }))).into_response()
    }
}

type Answered = Result<Json<Value>, Failed>;

fn done() -> Json<Value> {
    Json(json!({ "done": true }))
}

#[derive(Deserialize)]
struct Newest {
    requests: Option<usize>,
}

async fn state(State(site): Site, Query(newest): Query<Newest>) -> Json<Value> {
    let requests = newest.requests.unwrap_or(200);
    let (mut records, latest) = site.wfm.with(|records| {
        let latest = records.deployments.keys().map(|id| (id.clone(), json!(records.latest(id))));
        (serde_json::to_value(records).unwrap_or_default(), latest.collect::<Value>())
    });
    for history in ["requests", "statuses", "manifests"] {
        if let Some(entries) = records[history].as_array_mut() {
            entries.drain(..entries.len().saturating_sub(requests));
        }
    }
    let options = site.wfm.options();
    Json(json!({
        "url": site.wfm.url(),
        "wfm": site.authority.wfm_id(site.wfm.id()),
        "generation": options.generation,
        "mode": options.mode,
        "down": site.wfm.down(),
        "serving": site.wfm.serving(),
        "faults": site.wfm.faults(),
        "bundle_sequence": site.authority.sequence(),
        "discovery": {
            "url": site.discovery.url(), "pin": site.discovery.pin(), "faults": site.discovery.faults(),
            "requests": site.discovery.log().len(),
        },
        "registry": {
            "address": site.registry.address(), "artifacts": site.registry.catalogue(),
            "faults": site.registry.faults(), "requests": site.registry.log().len(),
        },
        "latest": latest,
        "records": records,
    }))
}

async fn deploy(State(site): Site, headers: HeaderMap, body: String) -> Answered {
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    // A page of another origin can send neither type without asking first.
    let id = if kind.starts_with("application/yaml") {
        site.wfm.deploy_yaml(&body)?
    } else if kind.starts_with("application/json") {
        let mut deployment: Deployment = serde_json::from_str(&body)
            .map_err(|error| MargoSimError::Deployment { id: String::new(), problem: error.to_string() })?;
        site.name_registry(&mut deployment);
        site.wfm.deploy(deployment)?
    } else {
        let problem = "send application/json or application/yaml".to_owned();
        return Err(MargoSimError::Deployment { id: String::new(), problem }.into());
    };
    Ok(Json(json!({ "id": id })))
}

async fn remove(State(site): Site, Path(id): Path<String>) -> Json<Value> {
    Json(json!({ "removed": site.wfm.remove(&id) }))
}

async fn inject(State(site): Site, Json(rule): Json<Rule>) -> Json<Value> {
    site.wfm.inject(rule);
    done()
}

async fn clear(State(site): Site) -> Json<Value> {
    site.wfm.clear_faults();
    site.discovery.clear_faults();
    site.registry.clear_faults();
    done()
}

#[derive(Deserialize)]
struct DownTo {
    down: Down,
}

async fn down(State(site): Site, Json(to): Json<DownTo>) -> Answered {
    site.wfm.set_down(to.down).await?;
    Ok(done())
}

async fn discovery_down(State(site): Site, Json(to): Json<DownTo>) -> Answered {
    site.discovery.set_down(to.down).await?;
    Ok(done())
}

async fn registry_down(State(site): Site, Json(to): Json<DownTo>) -> Answered {
    site.registry.set_down(to.down).await?;
    Ok(done())
}

#[derive(Deserialize)]
struct Serve {
    flaw: Flaw,
}

async fn serve(State(site): Site, Json(Serve { flaw }): Json<Serve>) -> Answered {
    site.wfm.serve(flaw)?;
    Ok(done())
}

#[derive(Deserialize)]
struct Retire {
    retired: bool,
}

async fn retire(State(site): Site, Path(client): Path<String>, Json(Retire { retired }): Json<Retire>) -> Json<Value> {
    Json(json!({ "known": site.wfm.retire(&client, retired) }))
}

#[derive(Deserialize)]
struct Issue {
    #[serde(default = "an_hour")]
    life_seconds: u64,
    #[serde(default)]
    flaw: Flaw,
}

fn an_hour() -> u64 {
    3600
}

async fn issue(State(site): Site, Path(client): Path<String>, Json(issue): Json<Issue>) -> Answered {
    let life = Duration::from_secs(issue.life_seconds);
    let svid = site.authority.client_svid(site.wfm.id(), &client, life, issue.flaw)?;
    Ok(Json(json!({ "chain": svid.chain_pem, "key": svid.key_pem })))
}

#[derive(Deserialize)]
struct Sign {
    request: String,
    #[serde(default = "an_hour")]
    life_seconds: u64,
}

async fn sign(State(site): Site, Path(client): Path<String>, Json(sign): Json<Sign>) -> Answered {
    let id = site.authority.client_id(site.wfm.id(), &client);
    let chain = site.authority.sign_request(&sign.request, &id, Duration::from_secs(sign.life_seconds))?;
    Ok(Json(json!({ "chain": chain })))
}

#[derive(Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
enum Roots {
    Add,
    RetireOld,
}

async fn roots(State(site): Site, Json(act): Json<Roots>) -> Answered {
    match act {
        Roots::Add => site.authority.add_root()?,
        Roots::RetireOld => site.authority.retire_old_roots(),
    }
    // What the fleet manager shows follows the newest root.
    site.wfm.serve(site.wfm.serving())?;
    Ok(Json(json!({ "sequence": site.authority.sequence() })))
}

async fn discovery_fault(State(site): Site, Json(fault): Json<Times<DiscoveryFault>>) -> Json<Value> {
    site.discovery.inject(fault);
    done()
}

#[derive(Deserialize)]
struct ServeWeb {
    certificate: WebCertificate,
}

async fn discovery_serve(State(site): Site, Json(serve): Json<ServeWeb>) -> Answered {
    site.discovery.serve(serve.certificate)?;
    Ok(done())
}

async fn registry_fault(State(site): Site, Json(fault): Json<Times<RegistryFault>>) -> Json<Value> {
    site.registry.inject(fault);
    done()
}

#[derive(Deserialize)]
struct Push {
    name: String,
    tag: String,
    #[serde(rename = "type")]
    kind: String,
    layers: Vec<PushedLayer>,
}

#[derive(Deserialize)]
struct PushedLayer {
    media_type: String,
    #[serde(default)]
    title: String,
    text: String,
}

async fn push(State(site): Site, Json(push): Json<Push>) -> Json<Value> {
    let layers = push.layers.into_iter().map(|layer| Layer {
        media_type: layer.media_type,
        title: layer.title,
        content: layer.text.into_bytes(),
    });
    let digest = site.registry.push(&push.name, &push.tag, &push.kind, &layers.collect::<Vec<_>>());
    Json(json!({ "digest": digest }))
}
