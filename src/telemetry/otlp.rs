//! OTLP export (http/protobuf). Exporters run on threads of their own; a collector that is away costs nothing but them.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;

use super::logs::BoxedLayer;
use super::{CATALOGUE, Kind, MeasurementSource, OtlpConfig, TelemetryError};

/// The providers that were asked for.
#[derive(Debug)]
pub(super) struct Providers {
    metrics: Option<SdkMeterProvider>,
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Providers {
    pub(super) fn build(config: &OtlpConfig, gateway: &str) -> Result<Self, TelemetryError> {
        let fail = |reason: String| TelemetryError::Otlp { endpoint: config.endpoint.clone(), reason };
        let resource = Resource::builder()
            .with_service_name("fieldgate")
            .with_attributes([
                KeyValue::new("service.instance.id", gateway.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        let client = http_client(config).map_err(fail)?;
        let url = |signal: &str| format!("{}/v1/{signal}", config.endpoint.trim_end_matches('/'));
        let headers = || config.headers.clone().into_iter().collect();

        let metrics = if config.metrics {
            let exporter = MetricExporter::builder()
                .with_http()
                .with_http_client(client.clone())
                .with_endpoint(url("metrics"))
                .with_headers(headers())
                .with_timeout(config.timeout)
                .build()
                .map_err(|e| fail(e.to_string()))?;
            let reader = PeriodicReader::builder(exporter).with_interval(config.interval).build();
            Some(SdkMeterProvider::builder().with_reader(reader).with_resource(resource.clone()).build())
        } else {
            None
        };
        let traces = if config.traces {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(client.clone())
                .with_endpoint(url("traces"))
                .with_headers(headers())
                .with_timeout(config.timeout)
                .build()
                .map_err(|e| fail(e.to_string()))?;
            Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.clone()).build())
        } else {
            None
        };
        let logs = if config.logs {
            let exporter = LogExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_endpoint(url("logs"))
                .with_headers(headers())
                .with_timeout(config.timeout)
                .build()
                .map_err(|e| fail(e.to_string()))?;
            Some(SdkLoggerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
        } else {
            None
        };
        Ok(Self { metrics, traces, logs })
    }

    /// Layers that hand spans and log events to the exporters.
    pub(super) fn layers(&self) -> Vec<BoxedLayer> {
        let mut layers: Vec<BoxedLayer> = Vec::new();
        if let Some(traces) = &self.traces {
            layers.push(tracing_opentelemetry::layer().with_tracer(traces.tracer("fieldgate")).boxed());
        }
        if let Some(logs) = &self.logs {
            layers.push(OpenTelemetryTracingBridge::new(logs).boxed());
        }
        layers
    }

    /// Registers one observable instrument per entry of the catalogue.
    pub(super) fn observe(&self, source: MeasurementSource) {
        let Some(metrics) = &self.metrics else { return };
        let meter = metrics.meter("fieldgate");
        for instrument in CATALOGUE {
            let source = source.clone();
            let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                for m in source().into_iter().filter(|m| m.name == instrument.name) {
                    let labels: Vec<_> = m.labels.into_iter().map(|(k, v)| KeyValue::new(k, v)).collect();
                    observer.observe(m.value, &labels);
                }
            };
            match instrument.kind {
                Kind::Counter => drop(
                    meter
                        .f64_observable_counter(instrument.name)
                        .with_unit(instrument.unit)
                        .with_description(instrument.description)
                        .with_callback(observe)
                        .build(),
                ),
                Kind::Gauge => drop(
                    meter
                        .f64_observable_gauge(instrument.name)
                        .with_unit(instrument.unit)
                        .with_description(instrument.description)
                        .with_callback(observe)
                        .build(),
                ),
            }
        }
    }

    /// Sends what is pending; all three at once, so that a collector that hangs costs `limit` and not three times that.
    pub(super) fn shutdown(self, limit: Duration) {
        std::thread::scope(|scope| {
            // A collector that is away is no reason to complain at the end.
            scope.spawn(|| self.metrics.as_ref().map(|metrics| metrics.shutdown_with_timeout(limit)));
            scope.spawn(|| self.traces.as_ref().map(|traces| traces.shutdown_with_timeout(limit)));
            scope.spawn(|| self.logs.as_ref().map(|logs| logs.shutdown_with_timeout(limit)));
        });
    }
}

/// The blocking client must be built outside an async context, hence on a thread of its own.
fn http_client(config: &OtlpConfig) -> Result<reqwest::blocking::Client, String> {
    // The client needs it even for `http`, and telemetry starts before everything else that uses TLS. A second call
    // changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder =
        reqwest::blocking::Client::builder().timeout(config.timeout).redirect(reqwest::redirect::Policy::none());
    if let Some(path) = &config.ca {
        let pem = std::fs::read(path).map_err(|e| format!("read CA file {}: {e}", path.display()))?;
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| format!("CA file {}: {e}", path.display()))?;
        builder = builder.tls_certs_only(certificates);
    }
    std::thread::scope(|scope| {
        let built = scope.spawn(move || builder.build().map_err(|e| e.to_string()));
        built.join().unwrap_or_else(|_| Err("the HTTP client could not be built".to_owned()))
    })
}
